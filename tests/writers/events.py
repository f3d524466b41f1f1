"""Events: their ``format`` text and their payloads, from one list of fields."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

_SIZES = {"char": 1, "bool": 1, "u8": 1, "s8": 1, "short": 2, "u16": 2, "s16": 2, "int": 4, "unsigned": 4}
_SIZES |= {"u32": 4, "s32": 4, "pid_t": 4, "u64": 8, "s64": 8, "__u64": 8}
_UNSIGNED = {"bool", "u8", "u16", "u32", "u64", "__u64", "size_t"}


@dataclass(frozen=True)
class FieldSpec:
    """A field ``type name``: one number, ``count`` of them (0: the open end of a record) or dynamic."""

    type: str
    name: str
    count: int | None = None
    dynamic: Literal["", "data_loc", "rel_loc"] = ""
    offset: int | None = None

    @property
    def signed(self) -> bool:
        words = self.type.split()
        return "unsigned" not in words and words[-1] not in _UNSIGNED and "*" not in words

    def element_size(self, long_size: int) -> int:
        words = self.type.split()
        if words.count("long") == 2:
            return 8
        if words[-1] in ("long", "size_t", "*"):
            return long_size
        return _SIZES[words[-1]]

    def declaration(self) -> str:
        if self.dynamic == "data_loc":
            return f"__data_loc {self.type}[] {self.name}"
        if self.dynamic == "rel_loc":
            return f"__rel_loc {self.type} {self.name}[]"
        if self.count is None:
            return f"{self.type} {self.name}"
        return f"{self.type} {self.name}[{self.count or ''}]"


COMMON = (
    FieldSpec("unsigned short", "common_type"),
    FieldSpec("unsigned char", "common_flags"),
    FieldSpec("unsigned char", "common_preempt_count"),
    FieldSpec("int", "common_pid"),
)


@dataclass(frozen=True)
class Event:
    """An event with its own ``fields`` (the common ones are added)."""

    id: int
    system: str
    name: str
    fields: list[FieldSpec] = field(default_factory=list)
    print_fmt: str = '""'

    def layout(self, long_size: int = 8) -> list[tuple[FieldSpec, int, int]]:
        """Return every field with its offset and size, as a C compiler lays them out."""
        known: dict[int, list[tuple[FieldSpec, int, int]]] = self.__dict__.setdefault("_layouts", {})
        if long_size in known:
            return known[long_size]
        placed, at = [], 0
        for spec in (*COMMON, *self.fields):
            element = 4 if spec.dynamic else spec.element_size(long_size)
            at = at + -at % element if spec.offset is None else spec.offset
            size = element * (1 if spec.count is None else spec.count)
            placed.append((spec, at, size))
            at += size
        known[long_size] = placed
        return placed

    def format_text(self, long_size: int = 8) -> str:
        """Return the text of the kernel's ``events/SYSTEM/NAME/format``."""
        lines = [
            f"\tfield:{spec.declaration()};\toffset:{offset};\tsize:{size};\tsigned:{int(spec.signed)};\n"
            for spec, offset, size in self.layout(long_size)
        ]
        fields = "".join(lines[: len(COMMON)]) + "\n" + "".join(lines[len(COMMON) :])
        return f"name: {self.name}\nID: {self.id}\nformat:\n{fields}\nprint fmt: {self.print_fmt}\n"

    def payload(
        self,
        pid: int = 0,
        /,
        *,
        big_endian: bool = False,
        long_size: int = 8,
        **values: Any,
    ) -> bytes:
        """Return a record of task ``pid``: fields not named in ``values`` are 0 or empty.

        Integers are given by value, strings as str (a NUL is added where the kernel adds one) or bytes,
        arrays as lists.
        """
        layout = self.layout(long_size)
        if unknown := set(values) - {spec.name for spec, _, _ in layout}:
            raise ValueError(f"{self.name} has no field {', '.join(sorted(unknown))}")
        given = {"common_type": self.id, "common_pid": pid} | values
        end = layout[-1][1] + layout[-1][2]
        align = max(4 if spec.dynamic else spec.element_size(long_size) for spec, _, _ in layout)
        fixed, tail = bytearray(end), b""
        for spec, offset, size in layout:
            empty: str | list[int] = "" if spec.type == "char" else []
            value = given.get(spec.name, empty if spec.dynamic or spec.count is not None else 0)
            if not spec.dynamic and spec.count is None:
                fixed[offset : offset + size] = _number(value, size, big_endian)
                continue
            data = _elements(value, spec.element_size(long_size), big_endian)
            if spec.count:
                fixed[offset : offset + size] = data[:size].ljust(size, b"\0")
                continue
            if isinstance(value, str):
                data += b"\0"
            if spec.dynamic:
                start = end + len(tail) - (offset + 4 if spec.dynamic == "rel_loc" else 0)
                fixed[offset : offset + size] = _number(len(data) << 16 | start, 4, big_endian)
            tail += data
        return bytes(fixed) + tail + bytes(-end % align)


def _number(value: int, size: int, big_endian: bool) -> bytes:
    return (value % (1 << 8 * size)).to_bytes(size, "big" if big_endian else "little")


def _elements(value: str | bytes | Iterable[int], size: int, big_endian: bool) -> bytes:
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, bytes):
        return value
    return b"".join(_number(item, size, big_endian) for item in value)


def _fields(text: str) -> list[FieldSpec]:
    """Read ``type name, type name[16], ...``."""
    specs = []
    for item in text.split(","):
        kind, _, name = item.strip().rpartition(" ")
        name, _, count = name.rstrip("]").partition("[")
        specs.append(FieldSpec(kind, name, int(count) if count else None))
    return specs


PRINT = Event(
    5,
    "ftrace",
    "print",
    [FieldSpec("unsigned long", "ip"), FieldSpec("char", "buf", 0)],
    '"%ps: %s", (void *)REC->ip, REC->buf',
)
KVM_ENTRY_X86 = Event(
    1449,
    "kvm",
    "kvm_entry",
    _fields("unsigned int vcpu_id, unsigned long rip, bool immediate_exit"),
    '"vcpu %u, rip 0x%lx%s", REC->vcpu_id, REC->rip, REC->immediate_exit ? "[immediate exit]" : ""',
)
KVM_EXIT_X86 = Event(
    1440,
    "kvm",
    "kvm_exit",
    _fields(
        "unsigned int exit_reason, unsigned long guest_rip, u32 isa, u64 info1, u64 info2, u32 intr_info, "
        "u32 error_code, unsigned int vcpu_id"
    ),
    '"vcpu %u reason %s rip 0x%lx info1 0x%016llx info2 0x%016llx intr_info 0x%08x error_code 0x%08x", '
    'REC->vcpu_id, __print_symbolic(REC->exit_reason & 0xffff, { 1, "EXTERNAL_INTERRUPT" }, { 12, "HLT" }, '
    '{ 32, "MSR_WRITE" }, { 48, "EPT_VIOLATION" }), REC->guest_rip, REC->info1, REC->info2, '
    "REC->intr_info, REC->error_code",
)
KVM_WRITE_TSC_OFFSET = Event(
    1420,
    "kvm",
    "kvm_write_tsc_offset",
    _fields("unsigned int vcpu_id, __u64 previous_tsc_offset, __u64 next_tsc_offset"),
    '"vcpu=%u prev=%llu next=%llu", REC->vcpu_id, REC->previous_tsc_offset, REC->next_tsc_offset',
)
KVM_ENTRY_ARM64 = Event(65, "kvm", "kvm_entry", _fields("unsigned long vcpu_pc"), '"PC: 0x%016lx", REC->vcpu_pc')
KVM_EXIT_ARM64 = Event(
    64,
    "kvm",
    "kvm_exit",
    _fields("int ret, unsigned int esr_ec, unsigned long vcpu_pc"),
    '"%s: HSR_EC: 0x%04x (%s), PC: 0x%016lx", __print_symbolic(REC->ret, {0, "IRQ" }, {2, "TRAP" }), '
    'REC->esr_ec, __print_symbolic(REC->esr_ec, { (((0x00UL))), "UNKNOWN" }, { (((0x01UL))), "WFx" }, '
    '{ (((0x24UL))), "DABT_LOW" }), REC->vcpu_pc',
)
KVM_GET_TIMER_MAP = Event(
    55,
    "kvm",
    "kvm_get_timer_map",
    _fields("unsigned long vcpu_id, int direct_vtimer, int direct_ptimer, int emul_vtimer, int emul_ptimer"),
    '"VCPU: %ld, dv: %d, dp: %d, ev: %d, ep: %d", REC->vcpu_id, REC->direct_vtimer, REC->direct_ptimer, '
    "REC->emul_vtimer, REC->emul_ptimer",
)
SCHED_SWITCH = Event(
    319,
    "sched",
    "sched_switch",
    _fields(
        "char prev_comm[16], pid_t prev_pid, int prev_prio, long prev_state, char next_comm[16], "
        "pid_t next_pid, int next_prio"
    ),
    '"prev_comm=%s prev_pid=%d prev_prio=%d prev_state=%s ==> next_comm=%s next_pid=%d next_prio=%d", '
    "REC->prev_comm, REC->prev_pid, REC->prev_prio, (REC->prev_state & 0xff) ? __print_flags("
    'REC->prev_state & 0xff, "|", { 0x00000001, "S" }, { 0x00000002, "D" }, { 0x00000080, "I" }) : "R", '
    "REC->next_comm, REC->next_pid, REC->next_prio",
)
SCHED_WAKING = Event(
    322,
    "sched",
    "sched_waking",
    _fields("char comm[16], pid_t pid, int prio, int target_cpu"),
    '"comm=%s pid=%d prio=%d target_cpu=%03d", REC->comm, REC->pid, REC->prio, REC->target_cpu',
)
HRTIMER_EXPIRE_ENTRY = Event(
    378,
    "timer",
    "hrtimer_expire_entry",
    _fields("void * hrtimer, s64 now, void * function"),
    '"hrtimer=%p function=%ps now=%llu", REC->hrtimer, REC->function, (unsigned long long) REC->now',
)
MARK = Event(2001, "marks", "mark", _fields("int n"), '"n=%d", REC->n')
