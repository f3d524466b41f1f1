"""Event formats: declarations as kernels have shown them, and anything else."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from counterpoint.traces.formats import MAX_FIELDS, Field, parse_field, parse_format
from writers.events import HRTIMER_EXPIRE_ENTRY, KVM_EXIT_X86, SCHED_SWITCH


def one(declaration: str, size: int, signed: int | None = 0, *, long_size: int = 8) -> Field:
    sign = "" if signed is None else f" signed:{signed};"
    field = parse_field(f"\tfield:{declaration};\toffset:16;\tsize:{size};{sign}", long_size)
    assert field is not None
    assert (field.offset, field.size, field.declaration) == (16, size, declaration)
    return field


class TestScalars:
    @pytest.mark.parametrize(
        ("declaration", "size", "signed", "name"),
        [
            ("unsigned short common_type", 2, 0, "common_type"),
            ("pid_t next_pid", 4, 1, "next_pid"),
            ("unsigned long vcpu_pc", 8, 0, "vcpu_pc"),
            ("unsigned long vcpu_pc", 4, 0, "vcpu_pc"),
            ("const char * msg", 8, 0, "msg"),
            ("const char *name", 8, 0, "name"),
            ("void * function", 8, 0, "function"),
            ("enum hrtimer_mode mode", 4, 0, "mode"),
            ("bool success", 1, 0, "success"),
            ("struct foo bar", 8, 0, "bar"),
            ("long long unsigned int ull", 8, 0, "ull"),
            ("umode_t  mode", 2, 0, "mode"),
        ],
    )
    def test_are_integers(self, declaration, size, signed, name):
        field = parse_field(f"\tfield:{declaration};\toffset:16;\tsize:{size};\tsigned:{signed};", 8)

        assert field is not None
        assert (field.name, field.kind, field.signed, field.size) == (name, "int", bool(signed), size)
        assert field.dynamic == ""

    def test_struct_of_an_odd_size_is_bytes(self):
        field = one("struct foo bar", 12)

        assert (field.name, field.kind) == ("bar", "bytes")

    @pytest.mark.parametrize(
        ("declaration", "signed"),
        [
            ("int ret", True),
            ("pid_t pid", True),
            ("s64 now", True),
            ("unsigned int nr", False),
            ("u32 len", False),
            ("__u64 addr", False),
            ("void * ip", False),
        ],
    )
    def test_without_a_sign_the_type_tells(self, declaration, signed):
        assert one(declaration, 8 if "64" in declaration or "*" in declaration else 4, None).signed is signed


class TestArrays:
    @pytest.mark.parametrize("length", ["16", "TASK_COMM_LEN", ""])
    def test_of_char_are_strings(self, length):
        field = one(f"char comm[{length}]", 16, 0)

        assert (field.name, field.kind, field.element_size) == ("comm", "string", 1)

    def test_open_end_of_a_record(self):
        field = one("char buf[]", 0)

        assert (field.name, field.kind, field.size) == ("buf", "string", 0)

    @pytest.mark.parametrize(
        ("declaration", "size", "long_size", "element"),
        [
            ("unsigned long args[6]", 48, 8, 8),
            ("unsigned long args[6]", 24, 4, 4),
            ("u8 mac[6]", 6, 8, 1),
            ("__u8 saddr[4]", 4, 8, 1),
            ("unsigned char cdb[8]", 8, 8, 1),
            ("int fds[2]", 8, 8, 4),
            ("u16 ports[2]", 4, 8, 2),
            ("long long v[2]", 16, 4, 8),
            ("void * caller[8]", 64, 8, 8),
        ],
    )
    def test_of_integers(self, declaration, size, long_size, element):
        field = one(declaration, size, long_size=long_size)

        assert field.name == declaration.split("[")[0].split()[-1]
        assert field.kind in ("array", "string")
        assert field.element_size == element

    def test_of_structs_are_bytes(self):
        assert one("struct perf_branch_entry entries[2]", 48).kind == "bytes"


class TestDynamic:
    @pytest.mark.parametrize("how", ["data", "rel"])
    @pytest.mark.parametrize("form", ["char[] name", "char name[]", "char [] name"])
    def test_strings(self, how, form):
        field = one(f"__{how}_loc {form}", 4)

        assert (field.name, field.kind, field.dynamic) == ("name", "string", f"{how}_loc")

    @pytest.mark.parametrize(
        ("declaration", "element"),
        [("__data_loc u8[] buf", 1), ("__data_loc int[] fds", 4), ("__rel_loc unsigned long ips[]", 8)],
    )
    def test_arrays(self, declaration, element):
        field = one(declaration, 4)

        assert (field.kind, field.element_size) == ("array", element)

    @pytest.mark.parametrize(
        "declaration",
        ["__data_loc cpumask_t mask", "__data_loc cpumask_t[] mask", "__data_loc cpumask_t *[] mask"],
    )
    def test_cpu_masks(self, declaration):
        field = one(declaration, 4)

        assert (field.name, field.dynamic) == ("mask", "data_loc")

    def test_long_masks_of_a_32_bit_machine(self):
        assert one("__data_loc unsigned long[] cpus", 4, long_size=4).element_size == 4


class TestWholeFormats:
    @pytest.mark.parametrize("event", [SCHED_SWITCH, KVM_EXIT_X86, HRTIMER_EXPIRE_ENTRY])
    @pytest.mark.parametrize("long_size", [4, 8])
    def test_fields_are_where_the_writer_puts_them(self, event, long_size):
        parsed = parse_format(event.format_text(long_size), event.system, long_size)

        assert parsed is not None
        assert (parsed.id, parsed.system, parsed.name) == (event.id, event.system, event.name)
        placed = [(f.name, f.offset, f.size) for f in (*parsed.common, *parsed.fields)]
        assert placed == [(spec.name, offset, size) for spec, offset, size in event.layout(long_size)]
        assert [f.signed for f in parsed.fields] == [spec.signed for spec in event.fields]
        assert parsed.print_fmt == event.print_fmt

    def test_own_fields_come_before_common_ones_of_the_same_name(self):
        text = 'name: x\nID: 7\nformat:\n\tfield:int a;\toffset:0;\tsize:4;\tsigned:1;\n\nprint fmt: ""\n'
        parsed = parse_format(text, "s", 8)

        assert parsed is not None
        assert parsed.field("a") is not None
        assert parsed.field("b") is None

    def test_print_format_of_several_lines(self):
        parsed = parse_format('name: x\nID: 7\nformat:\n\nprint fmt: "a" \\\n  "b"\n', "s", 8)

        assert parsed is not None
        assert parsed.print_fmt == '"a" \\\n  "b"'

    @pytest.mark.parametrize("digits", ["", "-1", "65536", "x", "²", "9" * 5000])
    def test_no_event_without_an_id(self, digits):
        assert parse_format(f"name: x\nID: {digits}\nformat:\n", "s", 8) is None

    def test_no_event_without_a_name(self):
        assert parse_format("ID: 7\nformat:\n", "s", 8) is None

    def test_lines_that_are_no_fields_are_passed_over(self):
        lines = [
            "field:int",
            "field:int a;",
            "field:int a; offset:x; size:4;",
            "field:int b; offset:8; size:4; signed:1;",
        ]
        parsed = parse_format("name: x\nID: 7\nformat:\n\t" + "\n\t".join(lines), "s", 8)

        assert parsed is not None
        assert [f.name for f in parsed.fields] == ["b"]

    def test_numbers_of_no_event_are_no_fields(self):
        nines = "9" * 5000

        assert parse_field(f"field:int a; offset:{nines}; size:4; signed:1;", 8) is None
        assert parse_field(f"field:int a; offset:8; size:{nines}; signed:1;", 8) is None

    def test_fields_beyond_any_event_are_left_out(self):
        line = "\tfield:int a;\toffset:8;\tsize:4;\tsigned:1;\n"
        parsed = parse_format("name: x\nID: 7\nformat:\n" + 100_000 * line, "s", 8)

        assert parsed is not None
        assert len(parsed.fields) == MAX_FIELDS

    def test_long_declarations_take_no_longer_than_short_ones(self):
        parsed = parse_format(f"name: x\nID: 7\nformat:\n\tfield:{'[' * 200_000};\toffset:8;\tsize:4;\n", "s", 8)

        assert parsed is not None


words = st.sampled_from(
    [
        "__data_loc",
        "__rel_loc",
        "unsigned",
        "long",
        "char",
        "u8",
        "struct",
        "*",
        "[",
        "]",
        "[]",
        "[4]",
        "name",
        ";",
        "\n",
        "field:",
        "field special:",
        "offset:",
        "size:",
        "signed:",
        "0;",
        "-1;",
        "8;",
        "\t",
        " ",
        "print fmt:",
        "ID:",
        "name:",
    ]
)
garbage = st.one_of(st.text(), st.lists(words, max_size=30).map(" ".join))


class TestGarbage:
    @given(garbage, st.sampled_from([4, 8]))
    @example("field:[];offset:0;size:4;signed:0;", 8)
    @example("field:;offset:0;size:0;signed:0;", 4)
    @example("field:__data_loc;offset:0;size:4;", 4)
    def test_never_raises(self, text, long_size):
        parse_field(text, long_size)
        parse_format(text, "s", long_size)
        parse_format(f"name: x\nID: 7\nformat:\n{text}", "s", long_size)

    @given(garbage, st.integers(-100, 10**6), st.integers(-100, 10**6))
    def test_fields_are_plausible(self, declaration, offset, size):
        field = parse_field(f"field:{declaration}; offset:{offset}; size:{size}; signed:1;", 8)

        if field is not None:
            assert field.offset >= 0
            assert field.kind != "int" or field.size in (1, 2, 4, 8)
            assert field.kind != "array" or field.element_size in (1, 2, 4, 8)
