"""The ``metadata`` of a CTF 1.8 trace: clock, environment, and the layout of every event, as TSDL text.

Events are named SYSTEM:EVENT and their fields as the kernel names them, as ``perf data convert --to-ctf`` does too;
``tracer_name`` says so, for by it Trace Compass chooses the names that it looks for (LttngKernelTrace.java,
PerfEventLayout.java). Names of fields begin with an underscore, as LTTng writes them: readers take one away, and no
name is one of TSDL's own words.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from uuid import UUID

from counterpoint.outputs.ctf_rows import CONTEXT, HEADER, TASK_BYTES, Shape, fields_of, shape_of
from counterpoint.outputs.dat_names import hexadecimal_fields
from counterpoint.traces.columns import element_size
from counterpoint.traces.formats import EventFormat, Field, named_fields

MAGIC = 0xC1FC1FC1
CLOCK = "host_time"

_SIGNED = {"tid"}
_NAME = re.compile(r"[^A-Za-z0-9_]", re.ASCII)


@dataclass(frozen=True, slots=True)
class Clock:
    """Whose clock the stamps are of, and what they count.

    ``uuid`` is the machine's: Trace Compass knows machines by it. ``offset_ns`` lies between 1970 and the clock's 0.
    ``precision``: how far a stamp may be from the truth, in its own units.
    """

    uuid: UUID
    description: str
    offset_ns: int = 0
    precision: int = 1


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of event: its number in the trace, its name, and its format (None: not known)."""

    number: int
    name: str
    event: EventFormat | None


def metadata(
    uuid: UUID, clock: Clock, env: Mapping[str, str | int], kinds: list[Kind], *, big_endian: bool
) -> Iterator[str]:
    """The text of a trace's metadata, piece by piece."""
    order = "be" if big_endian else "le"
    seconds, ns = divmod(clock.offset_ns, 1_000_000_000)
    yield "/* CTF 1.8 */\n\n"
    for name, size, signed in (("u8", 8, 0), ("u16", 16, 0), ("u32", 32, 0), ("u64", 64, 0), ("s32", 32, 1)):
        yield f"typealias {_integer(size, bool(signed))} := {name};\n"
    yield (
        f"\ntrace {{\n\tmajor = 1;\n\tminor = 8;\n\tuuid = \"{uuid}\";\n\tbyte_order = {order};\n"
        "\tpacket.header := struct {\n\t\tu32 magic;\n\t\tu8 uuid[16];\n\t\tu32 stream_id;\n"
        "\t\tu64 stream_instance_id;\n\t};\n};\n"
    )  # fmt: skip
    yield "\nenv {\n"
    for key, value in env.items():
        yield f"\t{_NAME.sub('_', key)} = {value if isinstance(value, int) else quoted(value)};\n"
    yield "};\n"
    yield (
        f"\nclock {{\n\tname = \"{CLOCK}\";\n\tuuid = \"{clock.uuid}\";\n\tdescription = {quoted(clock.description)};\n"
        f"\tfreq = 1000000000;\n\tprecision = {clock.precision};\n\toffset_s = {seconds};\n\toffset = {ns};\n"
        "\tabsolute = TRUE;\n};\n"
    )  # fmt: skip
    yield f"\ntypealias integer {{\n\tsize = 64; align = 8; signed = 0; map = clock.{CLOCK}.value;\n}} := stamp_t;\n"
    yield (
        "\nstream {\n\tid = 0;\n"
        "\tpacket.context := struct {\n\t\tstamp_t timestamp_begin;\n\t\tstamp_t timestamp_end;\n"
        "\t\tu64 content_size;\n\t\tu64 packet_size;\n\t\tu64 packet_seq_num;\n\t\tu64 events_discarded;\n"
        "\t\tu32 cpu_id;\n\t};\n"
    )
    yield "\tevent.header := struct {\n"
    yield "".join(f"\t\t{'stamp_t' if name == 'timestamp' else f'u{8 * size}'} {name};\n" for name, size in HEADER)
    yield "\t};\n\tevent.context := struct {\n"
    for name, size in CONTEXT:
        if name == "procname":
            yield f"\t\t{_character()} _{name}[{TASK_BYTES}];\n"
        else:
            yield f"\t\t{'s' if name in _SIGNED else 'u'}{8 * size} _{name};\n"
    yield "\t};\n};\n"
    for kind in kinds:
        yield _event(kind)


def _event(kind: Kind) -> str:
    lines = [f"\nevent {{\n\tid = {kind.number};\n\tname = {quoted(kind.name)};\n\tstream_id = 0;\n"]
    lines.append("\tfields := struct {\n")
    event = kind.event or EventFormat(0, "", "", (), fields_of(None), "")
    shown = hexadecimal_fields(event.print_fmt)
    taken: set[str] = set()
    for name, field in named_fields(event):
        lines += _field(_unique(name, taken), field, is_hexadecimal=field.name in shown)
    lines.append("\t};\n};\n")
    return "".join(lines)


def _unique(name: str, taken: set[str]) -> str:
    """A name for a field that no other of the event has, nor the length of one."""
    name = "_" + _NAME.sub("_", name)
    while {name, _length(name)} & taken:
        name += "_"
    taken |= {name, _length(name)}
    return name


def _length(name: str) -> str:
    """What LTTng calls the length of an array; babeltrace2 does not print it."""
    return f"_{name}_length"


def _field(name: str, field: Field, *, is_hexadecimal: bool) -> list[str]:
    shape: Shape = shape_of(field)
    base = 16 if is_hexadecimal or "*" in field.declaration or field.kind == "bytes" else 10
    if shape == "int":
        return [f"\t\t{_integer(8 * field.size, field.signed, base)} {name};\n"]
    if shape == "text":
        return [f"\t\tstring {{ encoding = UTF8; }} {name};\n"]
    if shape == "chars":
        return [f"\t\t{_character()} {name}[{field.size}];\n"]
    size = element_size(field) if field.kind == "array" else 1
    element = _integer(8 * size, field.signed and field.kind == "array", base)
    if shape == "ints":
        return [f"\t\t{element} {name}[{field.size // size}];\n"]
    return [f"\t\tu32 {_length(name)};\n", f"\t\t{element} {name}[{_length(name)}];\n"]


def _integer(bits: int, signed: bool, base: int = 10) -> str:
    return f"integer {{ size = {bits}; align = 8; signed = {int(signed)}; base = {base}; }}"


def _character() -> str:
    return "integer { size = 8; align = 8; signed = 0; encoding = UTF8; }"


def quoted(text: str) -> str:
    """A text as a TSDL string; what is not printable becomes a space."""
    clean = "".join(c if c.isprintable() else " " for c in text.encode("utf-8", "replace").decode())
    return '"' + clean.replace("\\", "\\\\").replace('"', '\\"') + '"'
