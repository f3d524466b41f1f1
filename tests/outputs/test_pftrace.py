"""The trace writer, read back by Perfetto's protobufs and by Perfetto's own trace processor."""

from __future__ import annotations

import errno
import inspect
import io
from collections import Counter

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from perfetto.protos.perfetto.trace import perfetto_trace_pb2 as pb2

from counterpoint.errors import BadFileError, UsageError
from counterpoint.outputs import pfkernel, pftrace
from counterpoint.outputs.pftrace import MAX_TEXT_BYTES, OPEN_END, Addresses, PerfettoWriter, clean
from outputs import trace_processor

T0 = 12_345_678_901_234
TOP = (1 << 63) - 1
NEEDS, CLEARED = 2, 1

needs_trace_processor = pytest.mark.usefixtures("_trace_processor")


@pytest.fixture(scope="module")
def _trace_processor():
    trace_processor.need()


class Read:
    """A trace as a reader sees it: packets, with numbers turned back to names."""

    def __init__(self, data: bytes) -> None:
        self.packets = list(pb2.Trace.FromString(data).packet)
        self.tracks = {p.track_descriptor.uuid: p.track_descriptor for p in self.of("track_descriptor")}
        self.names: dict[tuple[str, int], str | bytes] = {}
        self.events = []
        for packet in self.packets:
            for field, entries in packet.interned_data.ListFields():
                for entry in entries:
                    assert (field.name, entry.iid) not in self.names, "a number is given twice"
                    name = entry.str if field.name.endswith("values") else entry.name
                    self.names[field.name, entry.iid] = name
            if packet.HasField("track_event"):
                self.events.append(self.event(packet))  # with the names known so far, as a reader has to

    def of(self, field):
        return [packet for packet in self.packets if packet.HasField(field)]

    def event(self, packet):
        event = packet.track_event
        name = self.names["event_names", event.name_iid] if event.HasField("name_iid") else None
        return packet.timestamp, event.type, event.track_uuid, name, self.annotations(event)

    def annotations(self, event):
        found = {}
        for annotation in event.debug_annotations:
            kind = annotation.WhichOneof("value")
            value = getattr(annotation, kind)
            if kind == "string_value_iid":
                value = self.names["debug_annotation_string_values", value].decode()
            found[self.names["debug_annotation_names", annotation.name_iid]] = (kind, value)
        return found


@pytest.fixture
def trace():
    """A writer into memory, and what it has written so far."""
    file = io.BytesIO()
    writer = PerfettoWriter(file)
    writer.read = lambda: Read(file.getvalue())
    writer.data = file.getvalue
    return writer


def stamps(*values):
    return np.array(values, np.int64)


def test_field_numbers_are_those_of_the_published_messages():
    def number(message, name):
        field = message.DESCRIPTOR.fields_by_name.get(name.lower())
        if field is not None:
            return field.number
        values = [v for enum in message.DESCRIPTOR.enum_types for v in enum.values if v.name == name]
        return values[0].number

    homes = {"_Attribute": pb2.TraceAttributes.Attribute, "_Interned": pb2.EventName}
    checked = 0
    classes = [pair for module in (pftrace, pfkernel) for pair in inspect.getmembers(module, inspect.isclass)]
    for name, constants in classes:
        if constants.__module__ in (pftrace.__name__, pfkernel.__name__) and name.startswith("_"):
            message = homes.get(name) or getattr(pb2, name[1:])
            for field, value in vars(constants).items():
                if field.isupper():
                    assert value == number(message, field), f"{name}.{field}"
                    checked += 1
    assert checked > 40
    for entry in (pb2.EventCategory, pb2.DebugAnnotationName):
        assert (number(entry, "iid"), number(entry, "name")) == (1, 2)
    assert (number(pb2.InternedString, "iid"), number(pb2.InternedString, "str")) == (1, 2)


def test_first_packet_starts_the_sequence_and_others_need_its_state(trace):
    trace.instants(trace.track("a"), stamps(T0), stamps(0), ["x"])
    first, *others = trace.read().packets
    assert first.first_packet_on_sequence
    assert first.sequence_flags == NEEDS | CLEARED
    assert {p.sequence_flags for p in others} == {NEEDS}
    assert {p.trusted_packet_sequence_id for p in (first, *others)} == {1}
    root = first.track_descriptor
    assert (root.uuid, root.process_ordering) == (0, pb2.TrackDescriptor.PROCESS_ORDERING_EXPLICIT)


def test_tracks_form_a_tree_in_the_order_they_were_added(trace):
    host = trace.process("host", description="8 CPUs")
    guest = trace.process("guest", order=-5)
    lanes = [trace.track("vCPU 0", guest), trace.track("vCPU 0", guest, description="again")]
    below = trace.track("exits", lanes[0], order=7)
    count = trace.counter_track("latency", guest, unit="ns")
    top = trace.track("alone")
    tracks = trace.read().tracks
    assert sorted(tracks) == [0, host, guest, *lanes, below, count, top]
    assert [tracks[u].process.process_name for u in (host, guest)] == ["host", "guest"]
    assert tracks[host].process.pid != tracks[guest].process.pid
    assert tracks[host].description == "8 CPUs"
    assert [tracks[u].sibling_order_rank for u in (host, guest, *lanes, count, below, top)] == [
        0,
        -5,
        0,
        1,
        2,
        7,
        2,
    ]
    assert [tracks[u].parent_uuid for u in (*lanes, count, below)] == [guest, guest, guest, lanes[0]]
    assert not tracks[top].HasField("parent_uuid")
    assert {tracks[u].child_ordering for u in tracks} == {pb2.TrackDescriptor.EXPLICIT}
    assert tracks[lanes[0]].sibling_merge_behavior == pb2.TrackDescriptor.SIBLING_MERGE_BEHAVIOR_NONE
    assert tracks[count].counter.unit_name == "ns"
    assert [u for u in tracks if tracks[u].HasField("counter")] == [count]


def test_slices_are_pairs_with_names_categories_and_annotations(trace):
    track = trace.track("vCPU 0")
    trace.slices(
        track,
        stamps(T0, T0 + 5),
        stamps(T0 + 5, OPEN_END),
        stamps(1, 0),
        ["run", "HLT"],
        [("rip", np.array([1, 2], np.uint64))],
        category="kvm",
    )
    read = trace.read()
    assert read.events == [
        (T0, pb2.TrackEvent.TYPE_SLICE_BEGIN, track, "HLT", {"rip": ("uint_value", 1)}),
        (T0 + 5, pb2.TrackEvent.TYPE_SLICE_END, track, None, {}),
        (T0 + 5, pb2.TrackEvent.TYPE_SLICE_BEGIN, track, "run", {"rip": ("uint_value", 2)}),
    ]
    iids = [list(packet.track_event.category_iids) for packet in read.of("track_event")]
    assert iids == [[1], [], [1]]
    assert read.names["event_categories", 1] == "kvm"


def test_names_are_written_once(trace):
    track = trace.track("a")
    for names in (["x", "y"], ["y", b"x", "z"]):
        trace.instants(
            track,
            np.arange(len(names)),
            np.arange(len(names)),
            names,
            [("x", (names, np.arange(len(names))))],
        )
    read = trace.read()
    assert [event[3] for event in read.events] == ["x", "y", "y", "x", "z"]
    assert Counter(kind for kind, _ in read.names) == {
        "event_names": 3,
        "debug_annotation_names": 1,
        "debug_annotation_string_values": 3,
    }


def int_columns(dtype):
    limits = np.iinfo(dtype)
    edges = st.sampled_from([limits.min, limits.max, 0, 1])
    return lambda rows: hnp.arrays(dtype, rows, elements=st.one_of(edges, st.integers(limits.min, limits.max)))


KINDS = {
    "int_value": int_columns(np.int64),
    "uint_value": int_columns(np.uint64),
    "pointer_value": int_columns(np.uint64),
    "bool_value": lambda rows: hnp.arrays(np.bool_, rows),
    "double_value": lambda rows: hnp.arrays(np.float64, rows, elements=st.floats(allow_nan=False)),
    "string_value_iid": lambda rows: hnp.arrays(np.int16, rows, elements=st.integers(0, 2)),
}


@given(st.data())
@settings(suppress_health_check=[HealthCheck.too_slow])
def test_any_instants_read_back(data):
    rows = data.draw(st.integers(0, 12))
    ts = data.draw(hnp.arrays(np.int64, rows, elements=st.one_of(st.just(TOP), st.integers(0, TOP))))
    lanes = data.draw(hnp.arrays(np.int32, rows, elements=st.integers(1, 3)))
    names = data.draw(st.lists(st.text(max_size=30), min_size=1, max_size=4))
    name_index = data.draw(hnp.arrays(np.int64, rows, elements=st.integers(0, len(names) - 1)))
    texts = data.draw(st.lists(st.text(max_size=8), min_size=3, max_size=3))
    annotations, expected = [], [{} for _ in range(rows)]
    for n, kind in enumerate(data.draw(st.lists(st.sampled_from(sorted(KINDS)), max_size=4))):
        column = data.draw(KINDS[kind](rows))
        absent = data.draw(st.one_of(st.none(), hnp.arrays(np.bool_, rows)))
        for row in range(rows):
            if absent is None or not absent[row]:
                value = column[row].item()
                value = clean(texts[value]).decode() if kind == "string_value_iid" else value
                expected[row][f"field {n}"] = (kind, value)
        column = column if absent is None else np.ma.array(column, mask=absent)
        column = Addresses(column) if kind == "pointer_value" else column
        annotations.append((f"field {n}", (texts, column) if kind == "string_value_iid" else column))
    file = io.BytesIO()
    with PerfettoWriter(file) as trace:
        for lane in "abc":
            trace.track(lane)
        trace.instants(lanes, ts, name_index, names, annotations)
    assert Read(file.getvalue()).events == [
        (ts[i], pb2.TrackEvent.TYPE_INSTANT, lanes[i], clean(names[name_index[i]]).decode(), expected[i])
        for i in range(rows)
    ]


@given(hnp.arrays(np.int64, st.integers(0, 20)))
def test_any_counter_reads_back(values):
    file = io.BytesIO()
    with PerfettoWriter(file) as trace:
        trace.counter(trace.counter_track("c"), np.arange(len(values)), values)
    events = [packet.track_event for packet in Read(file.getvalue()).of("track_event")]
    assert [event.counter_value for event in events] == values.tolist()
    assert {event.type for event in events} <= {pb2.TrackEvent.TYPE_COUNTER}


@st.composite
def nested_slices(draw):
    """Slices that nest, in any order, on a line so short that many share a stamp; open ends are outermost."""
    found = []

    def fill(low, high, depth):
        at = low
        while at <= high and len(found) < 25 and draw(st.booleans()):
            begin = draw(st.integers(at, high))
            end = draw(st.integers(begin, high))
            found.append((begin, end))
            if depth < 3 and end > begin:
                fill(begin, end, depth + 1)
            at = end

    found += [(0, OPEN_END)] * draw(st.integers(0, 2))
    fill(0, 12, 0)
    return draw(st.permutations(found))


def replayed(events):
    """The slices of a track as a reader finds them: by time, stably, an end closing what is on top."""
    stack, found = [], []
    for ts, kind, _, name, _ in sorted(events, key=lambda event: event[0]):
        if kind == pb2.TrackEvent.TYPE_SLICE_BEGIN:
            stack.append((ts, name))
        else:
            begin, name = stack.pop()
            found.append((begin, ts, name))
    return found + [(begin, OPEN_END, name) for begin, name in stack]


@given(nested_slices())
def test_any_nested_slices_read_back_from_any_order(slices):
    begin, end = np.array(slices, np.int64).reshape(-1, 2).T
    names = [f"{b} to {e}" for b, e in slices]
    file = io.BytesIO()
    with PerfettoWriter(file) as trace:
        rows = np.arange(len(slices))
        trace.slices(
            trace.track("a"),
            begin,
            end,
            rows,
            names,
            [("row", rows), ("name", (names, rows)), ("at", Addresses(rows.astype(np.uint64)))],
        )
    read = Read(file.getvalue())
    assert sorted(replayed(read.events)) == sorted((b, e, f"{b} to {e}") for b, e in slices)
    for *_, name, found in read.events:
        if name is not None:
            assert found["name"] == ("string_value_iid", name)
            assert names[found["row"][1]] == names[found["at"][1]] == name


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)).map(sorted), max_size=7))
def test_slices_are_refused_exactly_if_two_cross(slices):
    crossing = any(a < c < b < d for a, b in slices for c, d in slices)
    begin, end = np.array(slices, np.int64).reshape(-1, 2).T
    with PerfettoWriter(io.BytesIO()) as trace:
        track, index = trace.track("a"), np.zeros(len(slices), np.int64)
        if crossing:
            with pytest.raises(ValueError, match="cross"):
                trace.slices(track, begin, end, index, ["x"])
        else:
            trace.slices(track, begin, end, index, ["x"])


def test_rows_in_order_keep_an_empty_slice_beside_the_one_after_it(trace):
    trace.slices(trace.track("a"), stamps(5, 5), stamps(5, 9), stamps(0, 1), ["empty", "long"])
    assert [event[3] for event in trace.read().events] == ["empty", None, "long", None]


def test_an_open_slice_may_not_be_inside_one_that_ends(trace):
    with pytest.raises(ValueError, match=r"slices 0 \(1 to 9\) and 1 \(2 to"):
        trace.slices(trace.track("a"), stamps(1, 2), stamps(9, OPEN_END), stamps(0, 0), ["x"])


def test_facts_are_an_instant_and_attributes(trace):
    facts = {"verdict": "proved", "width_ns": -12, "ok": True}
    track = trace.facts("proof", facts, T0, description="how")
    read = trace.read()
    assert read.tracks[track].sibling_order_rank == -1
    assert read.events == [
        (
            T0,
            pb2.TrackEvent.TYPE_INSTANT,
            track,
            "proof",
            {
                "verdict": ("string_value_iid", "proved"),
                "width_ns": ("int_value", -12),
                "ok": ("bool_value", True),
            },
        )
    ]
    attributes = read.of("trace_attributes")[0].trace_attributes.attribute
    assert [(a.key, a.string_value or a.long_value) for a in attributes] == list(facts.items())


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("plain é\t\n", "plain é\t\n"),
        (b"caf\xc3\xa9 \xff\xfe", "café \ufffd\ufffd"),
        ("\ud800 alone", "\ufffd alone"),
        ("a\0b\x1b[31m\x7f\x9b", "a\ufffdb\ufffd[31m\ufffd\ufffd"),
        ("user\u202egpj.exe\u2066", "user\ufffdgpj.exe\ufffd"),
        ("x" * MAX_TEXT_BYTES, "x" * MAX_TEXT_BYTES),
        ("x" * (MAX_TEXT_BYTES + 1), "x" * (MAX_TEXT_BYTES - 3) + "…"),
        (b"x" * 10_000_000, "x" * (MAX_TEXT_BYTES - 3) + "…"),
        ("é" * MAX_TEXT_BYTES, "é" * ((MAX_TEXT_BYTES - 3) // 2) + "…"),
    ],
)
def test_text_is_cleaned(raw, shown):
    assert clean(raw).decode() == shown


@given(st.one_of(st.binary(max_size=50), st.text(st.characters(codec=None), max_size=50)), st.integers(0, 3))
def test_any_text_becomes_valid_and_short(raw, power):
    data = clean(raw * 10**power)
    assert len(data) <= MAX_TEXT_BYTES
    assert clean(data) == data


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda t, a: t.instants(a, stamps(-1), stamps(0), ["x"]), "negative time, -1"),
        (lambda t, a: t.instants(a, np.array([1 << 63], np.uint64), stamps(0), ["x"]), "above the range"),
        (lambda t, a: t.instants(a, np.array([1.5]), stamps(0), ["x"]), "integers, not of float64"),
        (lambda t, a: t.instants(a, stamps(1, 2), stamps(0), ["x"]), r"differ in shape: \(2,\), \(1,\)"),
        (lambda t, a: t.instants(a, stamps(1), stamps(1), ["x"]), "leaves the 1 texts"),
        (lambda t, a: t.instants(a, stamps(1), stamps(0), ["x"], [("n", stamps(1, 2))]), "differ in length"),
        (
            lambda t, a: t.instants(a, stamps(1), stamps(0), ["x"], [("n", np.array(["x"]))]),
            "vector of integers",
        ),
        (lambda t, a: t.instants(99, stamps(1), stamps(0), ["x"]), "no track 99"),
        (lambda t, a: t.instants(stamps(a, 0), stamps(1, 2), stamps(0, 0), ["x"]), "no track 0"),
        (
            lambda t, a: t.slices(a, stamps(5, 9), stamps(7, 8), stamps(0, 0), ["x"]),
            "slice 1 ends at 8, before",
        ),
        (lambda t, a: t.slices(99, stamps(5), stamps(7), stamps(0), ["x"]), "no track 99"),
        (lambda t, a: t.counter(99, stamps(5), stamps(7)), "no track 99"),
        (lambda t, a: t.track("b", 99), "no track 99"),
        (lambda t, a: t.track("b", order=1 << 31), "32-bit"),
        (lambda t, a: t.facts("f", {"n": 1 << 64}, 0), "64 bits"),
    ],
)
def test_wrong_columns_are_refused(trace, wrong, words):
    track = trace.track("a")
    with pytest.raises(ValueError, match=words):
        wrong(trace, track)


def test_the_file_gets_its_name_at_the_end(tmp_path):
    path = tmp_path / "merged.pftrace"
    with PerfettoWriter(path) as trace:
        trace.track("a")
        assert not path.exists()
        assert len(list(tmp_path.iterdir())) == 1
    assert list(tmp_path.iterdir()) == [path]
    assert path.stat().st_size == trace.bytes_written
    assert len(Read(path.read_bytes()).tracks) == 2
    trace.close()
    with pytest.raises(ValueError, match="closed"):
        trace.track("b")


def test_an_error_leaves_no_file_and_the_old_one_as_it_was(tmp_path):
    path = tmp_path / "merged.pftrace"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), PerfettoWriter(path, overwrite=True) as trace:
        trace.track("a")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == b"old"


def test_an_existing_file_is_replaced_only_if_asked(tmp_path):
    path = tmp_path / "merged.pftrace"
    path.write_bytes(b"old")
    with pytest.raises(UsageError, match=r"merged\.pftrace exists"):
        PerfettoWriter(path)
    PerfettoWriter(path, overwrite=True).close()
    assert list(tmp_path.iterdir()) == [path]
    assert len(Read(path.read_bytes()).packets) == 1


def test_a_folder_that_is_not_there_is_said(tmp_path):
    with pytest.raises(BadFileError, match=r"gone/x\.pftrace: cannot be written: No such file"):
        PerfettoWriter(tmp_path / "gone" / "x.pftrace")


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path, monkeypatch):
    path = tmp_path / "merged.pftrace"

    class Full(io.BytesIO):
        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(BadFileError, match="No space left"), PerfettoWriter(path) as trace:
        trace._file.close()
        monkeypatch.setattr(trace, "_file", Full())
        trace.track("a")
    assert list(tmp_path.iterdir()) == []


# -- what Perfetto's trace processor makes of it

NO_ERRORS = "select name, value from stats where severity in ('error', 'data_loss') and value <> 0"


@needs_trace_processor
def test_trace_processor_reads_all_kinds_without_an_error(trace):
    host, guest = trace.process("host"), trace.process("guest")
    lane, other = trace.track("vCPU 0", guest), trace.track("vCPU 0", guest, description="a second one")
    begin, end = stamps(0, 0, 2, 5, 5, 5, 9), stamps(5, 2, 5, 5, 9, 7, OPEN_END - T0)
    trace.slices(lane, T0 + begin, T0 + end, np.arange(7) % 4, ["out", "in", "in2", "empty"], category="kvm")
    values = [("i", stamps(-1, TOP)), ("ok", np.ma.array([True, False], mask=[False, True]))]
    values += [("text", (["é", b"\xff<b>"], stamps(1, 0))), ("u", np.array([7, 0], np.uint8))]
    values.append(("ip", Addresses(np.array([0xFFFF_FFFF_8100_0000, 0], np.uint64))))
    trace.instants(stamps(other, host), stamps(T0 + 1, T0), stamps(0, 1), ["one", "two"], values)
    trace.counter(trace.counter_track("latency", guest), T0 + np.arange(3), stamps(1, -(1 << 50), 4))
    trace.facts("proof", {"verdict": "proved"}, T0)
    errors, slices, args, processes, tracks, counts = trace_processor.run(
        trace.data(),
        NO_ERRORS,
        "select ts, dur, depth, s.name, category, t.name from slice s join track t on t.id = track_id order by 1, 3, 4",
        "select s.name, substr(key, 7), display_value from slice s join args using (arg_set_id) order by 1, 2",
        "select name from process where pid > 0 order by upid",
        "select t.name, r.int_value, d.string_value from track t"
        " join args r on r.arg_set_id = source_arg_set_id and r.key = 'sibling_order_rank'"
        " left join args d on d.arg_set_id = source_arg_set_id and d.key = 'description'"
        " where t.name is not null order by 1, 2",
        "select ts, value from counter order by ts",
    )
    assert errors == []
    assert slices == [
        (T0, 5, 0, "out", "kvm", "vCPU 0"),
        (T0, 0, 0, "proof", None, "proof"),
        (T0, 0, 0, "two", None, None),
        (T0, 2, 1, "in", "kvm", "vCPU 0"),
        (T0 + 1, 0, 0, "one", None, "vCPU 0"),
        (T0 + 2, 3, 1, "in2", "kvm", "vCPU 0"),
        (T0 + 5, 0, 0, "empty", "kvm", "vCPU 0"),
        (T0 + 5, 4, 0, "out", "kvm", "vCPU 0"),
        (T0 + 5, 2, 1, "in", "kvm", "vCPU 0"),
        (T0 + 9, -1, 0, "in2", "kvm", "vCPU 0"),
    ]
    assert args == [
        ("one", "i", "-1"),
        ("one", "ip", "0xffffffff81000000"),
        ("one", "ok", "true"),
        ("one", "text", "\ufffd<b>"),
        ("one", "u", "7"),
        ("proof", "verdict", "proved"),
        ("two", "i", str(TOP)),
        ("two", "ip", "0x0"),
        ("two", "text", "é"),
        ("two", "u", "0"),
    ]
    assert processes == [("host",), ("guest",)]
    assert tracks == [
        ("latency", 2, None),
        ("proof", -1, None),
        ("vCPU 0", 0, None),
        ("vCPU 0", 1, "a second one"),
    ]
    assert counts == [(T0, 1.0), (T0 + 1, -float(1 << 50)), (T0 + 2, 4.0)]


@needs_trace_processor
def test_trace_processor_sorts_what_is_written_out_of_order(trace):
    n = 60_000
    begin = T0 + np.arange(n) * 10
    names = ["a", "b"]
    lanes = [trace.track(f"lane {i}") for i in range(3)]
    for lane in lanes:  # each call starts at the begin of time again
        trace.slices(lane, begin, begin + 10, np.arange(n) % 2, names)
    # one slice around all, written with its end before everything inside it
    trace.slices(lanes[0], stamps(T0 - 1), stamps(T0 + 10 * n), stamps(0), ["all"])
    errors, counts, around = trace_processor.run(
        trace.data(),
        NO_ERRORS,
        "select track_id, depth, count(*), sum(dur), min(dur), max(dur) from slice where name <> 'all' group by 1",
        "select dur, depth from slice where name = 'all'",
    )
    assert errors == []
    assert [row[1:] for row in counts] == [(depth, n, 10 * n, 10, 10) for depth in (1, 0, 0)]
    assert around == [(10 * n + 1, 0)]


@needs_trace_processor
@settings(max_examples=4, deadline=None)
@given(st.lists(nested_slices(), min_size=30, max_size=40))
def test_trace_processor_finds_any_nested_slices(lanes):
    file = io.BytesIO()
    expected = []
    with PerfettoWriter(file) as trace:
        for lane, slices in enumerate(lanes):
            begin, end = np.array(slices, np.int64).reshape(-1, 2).T
            track = trace.track(f"{lane}")
            trace.slices(track, begin, end, np.arange(len(slices)), [f"{b} to {e}" for b, e in slices])
            expected += [(str(lane), b, -1 if e == OPEN_END else e - b, f"{b} to {e}") for b, e in slices]
    errors, found = trace_processor.run(
        file.getvalue(),
        NO_ERRORS,
        "select t.name, ts, dur, s.name from slice s join track t on t.id = track_id",
    )
    assert errors == []
    assert sorted(found) == sorted(expected)


@needs_trace_processor
def test_trace_processor_refuses_what_is_broken(trace):
    with pytest.raises(trace_processor.TraceProcessorError, match="Unknown trace type"):
        trace_processor.run(b"no trace", NO_ERRORS)
    with pytest.raises(trace_processor.TraceProcessorError, match="no such column"):
        trace_processor.run(trace.data(), "select missing from slice")
