"""Maps as JSON and back, without loss: the keys of the report (docs/json.md) that a conversion needs. Pure data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from counterpoint.clocks.band import Band
from counterpoint.clocks.counter import MASK, to_signed
from counterpoint.clocks.cpu_clock import CpuClock, End, Reach, Through
from counterpoint.clocks.known_counter import K_LIMIT, ArchCounter
from counterpoint.clocks.machines import GuestClock, MachineClock, Maps
from counterpoint.clocks.maps import Epoch
from counterpoint.clocks.pairs import ClockPair
from counterpoint.clocks.rate import Rate
from counterpoint.clocks.spans import Spans

Json = dict[str, Any]
T = TypeVar("T")

SCHEMA = 1

_WIDE = 1 << 65
"""No number of a map is as large."""

_BAND = 1 << 62
_MAX_PPB = 1 << 40
_MAX_TEXT = 1 << 16
_UNITS = ("ticks", "ns")
_CLOCKS = ("shared", "own", "reference")


# -- to JSON


def machine_keys(machine: MachineClock) -> Json:
    """What is known of a machine's clock, beside its name and ``clock``."""
    rate = machine.rate
    first, last = machine.span or (None, None)
    return {
        "unit": machine.unit,
        "rate": None if rate is None else {"mult": rate.mult, "shift": rate.shift, "source": rate.source},
        "from": first,
        "to": last,
        "arch": machine.arch or None,
        "date_us": machine.date_us,
        "arch_counter": None if machine.counter is None else _counter(machine.counter),
    }


def _counter(counter: ArchCounter) -> Json:
    k = [counter.k, counter.k if counter.k_hi is None else counter.k_hi]
    return {"hz": counter.frequency, "k": k, "source": counter.source}


def vcpu_keys(clock: CpuClock, further: Mapping[str, CpuClock] | None = None) -> Json:
    """What is known of a guest CPU's map as a whole; ``further``: of those on the hosts that its guest went to."""
    out = {"conversion": _conversion(clock)}
    return out | ({"conversion_on": {host: _conversion(c) for host, c in further.items()}} if further else {})


def _conversion(clock: CpuClock) -> Json:
    return {
        "refused": clock.refusal or None,
        "before": _end(clock.before),
        "after": _end(clock.after),
        "rounding": clock.rounding,
        "through": None if clock.through is None else _through(clock.through),
    }


def epoch_keys(epoch: Epoch, reach: Reach) -> Json:
    """What is known of an epoch, beside its formula, interval and bounds."""
    out: Json = {
        "near": epoch.near,
        "guest_seen": list(reach.seen),
        "host_within": _spans(reach.within),
        "began_at": reach.began_at,
    }
    if epoch.band is not None:
        out |= {"slower_ppb": epoch.band.slower_ppb, "faster_ppb": epoch.band.faster_ppb}
    return out


def unknown_epoch_keys() -> Json:
    """The same of an epoch whose map is refused."""
    return dict.fromkeys(("near", "guest_seen", "host_within", "began_at"))


def pairs_key(pairs: Iterable[ClockPair]) -> list[Json]:
    """Instants at which the host's trace clock and its CLOCK_REALTIME were read."""
    return [
        {"stamp": p.counter, "realtime_ns": p.realtime_ns, "bound_ns": p.bound_ns, "source": p.source} for p in pairs
    ]


def _end(end: End) -> Json:
    return {"until": end.until, "reason": end.reason or None, "firm": end.is_firm}


def _spans(spans: Spans) -> list[list[int | None]]:
    return [list(pair) for pair in spans.pairs]


def _through(through: Through) -> Json:
    stays = {str(cpu): _spans(spans) for cpu, spans in through.stays}
    return {"clock": through.clock, "constant": through.constant, "stays": stays}


# -- from JSON, which may be anyone's


def maps_from(report: object) -> Maps:
    """The maps of a report; ValueError says what is wrong with it, and where."""
    top = _object(report, "the file")
    if _get(top, "schema", "", _integer) != SCHEMA:
        raise ValueError(f"schema {top['schema']} is not {SCHEMA}")
    host = _machine(_get(top, "host", "", _object), "host")
    guests = tuple(
        _guest(_object(item, f"guests[{i}]"), f"guests[{i}]") for i, item in enumerate(_get(top, "guests", "", _list))
    )
    names = [host.name, *(g.name for g in guests)]
    if len(set(names)) < len(names):
        raise ValueError("two machines have one name")
    parents = {g.name: g.parent for g in guests}
    for name in parents:
        seen, at = {name}, parents[name]
        while at != host.name:
            if at in seen or at not in parents:
                raise ValueError(f"guest {name!r} has no host that is the first one")
            seen.add(at)
            at = parents[at]
    hosts = [
        _object(item, f"hosts[{i}]") for i, item in enumerate(_get(top, "hosts", "", _list) if "hosts" in top else [])
    ]
    further = [_further(item, f"hosts[{i}]", top["guests"]) for i, item in enumerate(hosts) if "realtime" in item]
    if len({host.name, *(m.host.name for m in further)}) <= len(further):
        raise ValueError("two hosts have one name")
    return Maps(host, guests, _pairs(top, ""), tuple(further))


def _further(item: Json, where: str, guests: list[Any]) -> Maps:
    """The maps of the guests that went to a further host."""
    host = _machine(item, where)
    there = [
        (guest, f"guests[{i}]")
        for i, guest in enumerate(guests)
        if any(
            "conversion_on" in v and host.name in _object(v["conversion_on"], "conversion_on") for v in guest["vcpus"]
        )
    ]
    return Maps(host, tuple(_guest(guest, place, host.name) for guest, place in there), _pairs(item, where))


def _pairs(item: Json, where: str) -> tuple[ClockPair, ...]:
    pairs = _get(item, "realtime", where, _list) if "realtime" in item else []
    place = f"{where}.realtime" if where else "realtime"
    return tuple(_pair(pair, f"{place}[{i}]") for i, pair in enumerate(pairs))


def _machine(item: Json, where: str) -> MachineClock:
    unit = _get(item, "unit", where, _text)
    if unit not in _UNITS:
        raise ValueError(f"{where}.unit is none of {', '.join(_UNITS)}")
    first, last = _get(item, "from", where, _stamp_or_none), _get(item, "to", where, _stamp_or_none)
    clock = _get(item, "clock", where, _text)
    known = item.get("arch_counter")
    return MachineClock(
        _get(item, "name", where, _text),
        clock,
        unit,
        _get(item, "rate", where, _or_none(_rate)),
        None if first is None or last is None else (first, last),
        _get(item, "arch", where, _or_none(_text)) or "",
        _get(item, "date_us", where, _or_none(_integer)),
        None if known is None else _counter_from(known, clock, f"{where}.arch_counter"),
    )


def _counter_from(value: object, clock: str, where: str) -> ArchCounter:
    item = _object(value, where)
    hz, (lo, hi) = _get(item, "hz", where, _integer), _get(item, "k", where, _pair_of(_wide))
    source = _get(item, "source", where, _text)
    # the clock is held against what the factors are known of
    return _said(lambda: ArchCounter(hz, lo, clock, hi, source), where)  # type: ignore[arg-type]


def _wide(value: object, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) > K_LIMIT:
        raise ValueError(f"{where} is no K")
    return value


def _rate(value: object, where: str) -> Rate:
    item = _object(value, where)
    mult, shift = _get(item, "mult", where, _integer), _get(item, "shift", where, _integer)
    return _said(lambda: Rate(mult, shift, _get(item, "source", where, _text)), where)


def _guest(item: Json, where: str, further: str | None = None) -> GuestClock:
    """A guest on the first host, or on a ``further`` one."""
    cpus = tuple(_cpu(vcpu, f"{where}.vcpus[{i}]", further) for i, vcpu in enumerate(_get(item, "vcpus", where, _list)))
    if len({c.guest_cpu for c in cpus}) < len(cpus):
        raise ValueError(f"{where}: two vcpus have one guest_cpu")
    return GuestClock(_machine(item, where), further or _get(item, "parent", where, _text), cpus)


def _cpu(value: object, where: str, further: str | None) -> CpuClock:
    item = _object(value, where)
    number = _get(item, "guest_cpu", where, _small)
    said, inner = _get(item, "conversion", where, _object), f"{where}.conversion"
    if further is not None:
        said, inner = _get(item, "conversion_on", where, _object), f"{where}.conversion_on"
        said, inner = _get(said, further, inner, _object), f"{inner}.{further}"
    refusal = _get(said, "refused", inner, _or_none(_text))
    if refusal:
        return CpuClock(number, refusal=refusal)
    listed = [(_object(e, where), f"{where}.epochs[{i}]") for i, e in enumerate(_get(item, "epochs", where, _list))]
    epochs = [_epoch(e, place) for e, place in listed if e.get("host") == further]
    before, after = _get(said, "before", inner, _end_from), _get(said, "after", inner, _end_from)
    rounding, through = _get(said, "rounding", inner, _small), _get(said, "through", inner, _or_none(_through_from))
    listed = [(_object(m, where), f"{where}.mis_stamped") for m in _get(item, "mis_stamped", where, _list)]
    late = tuple(_late(m, place) for m, place in listed if m.get("host") == further)
    maps, reaches = tuple(epoch for epoch, _ in epochs), tuple(reach for _, reach in epochs)
    return _said(lambda: CpuClock(number, maps, reaches, before, after, rounding, late, through), where)


def _end_from(value: object, where: str) -> End:
    item = _object(value, where)
    reason = _get(item, "reason", where, _or_none(_text))
    firm = item.get("firm", False)
    if not isinstance(firm, bool):
        raise ValueError(f"{where}.firm is neither true nor false")
    return End(_get(item, "until", where, _stamp_or_none), reason or "", firm)


def _late(value: object, where: str) -> tuple[int, int]:
    item = _object(value, where)
    return _get(item, "guest_from", where, _stamp), _get(item, "guest_to", where, _stamp)


def _epoch(value: object, where: str) -> tuple[Epoch, Reach]:
    item = _object(value, where)
    feasible = _get(item, "feasible", where, _or_none(_pair_of(_integer)))
    if feasible is not None and not 0 <= feasible[1] - feasible[0] < 1 << 63:
        raise ValueError(f"{where}.feasible is no interval")
    offset, ratio, frac_bits = (_get(item, key, where, _integer) for key in ("offset", "ratio", "frac_bits"))
    guest_from, host_from, near = (
        _get(item, key, where, _stamp_or_none) for key in ("guest_from", "host_from", "near")
    )
    band = _band(item, where) if "bounds" in item else None
    epoch = _said(lambda: Epoch(offset, guest_from, host_from, feasible, ratio, frac_bits, band, near), where)
    seen = _get(item, "guest_seen", where, _pair_of(_stamp))
    if to_signed(seen[1] - seen[0]) < 0:
        raise ValueError(f"{where}: its events are not in order")
    within, began_at = _get(item, "host_within", where, _spans_from), _get(item, "began_at", where, _stamp_or_none)
    return epoch, Reach(seen, within, began_at)


def _band(item: Json, where: str) -> Band:
    rows = [_list(row, f"{where}.bounds") for row in _get(item, "bounds", where, _list)]
    if not rows or any(len(row) != 4 for row in rows):
        raise ValueError(f"{where}.bounds is no list of [host_from, host_to, lo, hi]")
    host = [_stamp(rows[0][0], where), *(_stamp(row[1], where) for row in rows)]
    lo, hi = [_integer(row[2], where) for row in rows], [_integer(row[3], where) for row in rows]
    away = [to_signed(stamp - host[0]) for stamp in host]
    in_order = away == sorted(away) and all(row[0] == stamp for row, stamp in zip(rows, host, strict=False))
    fits = away[-1] < _BAND and all(-_BAND < a <= b < _BAND for a, b in zip(lo, hi, strict=True))
    if not in_order or not fits:
        raise ValueError(f"{where}.bounds is not in order, or too wide")
    growth = [_get(item, key, where, _integer) for key in ("slower_ppb", "faster_ppb")]
    if not all(0 <= ppb < _MAX_PPB for ppb in growth):
        raise ValueError(f"{where}: a rate is out of range")
    return Band(tuple(host), tuple(lo), tuple(hi), *growth)


def _through_from(value: object, where: str) -> Through:
    item = _object(value, where)
    clock = _get(item, "clock", where, _text)
    if clock not in _CLOCKS:
        raise ValueError(f"{where}.clock is none of {', '.join(_CLOCKS)}")
    stays = []
    for cpu, spans in _get(item, "stays", where, _object).items():
        if not (cpu.isascii() and cpu.isdigit() and len(cpu) < 10):
            raise ValueError(f"{where}.stays: {cpu[:20]!r} is no CPU")
        stays.append((int(cpu), _spans_from(spans, f"{where}.stays")))
    return Through(clock, _get(item, "constant", where, _integer), tuple(stays))


def _spans_from(value: object, where: str) -> Spans:
    pair = _pair_of(_stamp_or_none)
    return _said(lambda: Spans(tuple(pair(item, where) for item in _list(value, where))), where)


def _pair(value: object, where: str) -> ClockPair:
    item = _object(value, where)
    stamp, time, bound = (_get(item, key, where, _integer) for key in ("stamp", "realtime_ns", "bound_ns"))
    return _said(lambda: ClockPair(stamp, time, bound, _get(item, "source", where, _text)), where)


def _said(make: Callable[[], T], where: str) -> T:
    """What is made, or ValueError with the place."""
    try:
        return make()
    except ValueError as err:
        text = str(err)
        raise ValueError(text if text.startswith(where) else f"{where}: {text}") from None


def _get(item: Json, key: str, where: str, kind: Callable[[object, str], T]) -> T:
    place = f"{where}.{key}" if where else key
    if key not in item:
        raise ValueError(f"{place} is missing")
    return kind(item[key], place)


def _object(value: object, where: str) -> Json:
    if not isinstance(value, dict):
        raise ValueError(f"{where} is no object")
    return value


def _list(value: object, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{where} is no list")
    return value


def _text(value: object, where: str) -> str:
    if not isinstance(value, str) or len(value) > _MAX_TEXT:
        raise ValueError(f"{where} is no text, or too long")
    return value


def _integer(value: object, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not -_WIDE < value < _WIDE:
        raise ValueError(f"{where} is no integer of 64 bits")
    return value


def _small(value: object, where: str) -> int:
    number = _integer(value, where)
    if not 0 <= number < 1 << 31:
        raise ValueError(f"{where} is out of range")
    return number


def _stamp(value: object, where: str) -> int:
    stamp = _integer(value, where)
    if not 0 <= stamp <= MASK:
        raise ValueError(f"{where} is no stamp of 64 bits")
    return stamp


def _or_none(kind: Callable[[object, str], T]) -> Callable[[object, str], T | None]:
    return lambda value, where: None if value is None else kind(value, where)


def _pair_of(kind: Callable[[object, str], T]) -> Callable[[object, str], tuple[T, T]]:
    def read(value: object, where: str) -> tuple[T, T]:
        items = _list(value, where)
        if len(items) != 2:
            raise ValueError(f"{where} is no pair")
        return kind(items[0], where), kind(items[1], where)

    return read


_stamp_or_none = _or_none(_stamp)
