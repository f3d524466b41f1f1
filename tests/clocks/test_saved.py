"""Maps as JSON and back: nothing is lost, and nothing that a file may say breaks more than its reading."""

from __future__ import annotations

import json
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

from clocks.cases import EDGES, PERIOD, randoms
from counterpoint.clocks import saved
from counterpoint.clocks.band import Band
from counterpoint.clocks.counter import MASK
from counterpoint.clocks.cpu_clock import CpuClock, End, Reach, Through
from counterpoint.clocks.known_counter import ArchCounter
from counterpoint.clocks.machines import GuestClock, MachineClock, Maps
from counterpoint.clocks.maps import Epoch
from counterpoint.clocks.pairs import ClockPair
from counterpoint.clocks.rate import Rate
from counterpoint.clocks.spans import Spans


def report_of(maps: Maps) -> dict[str, Any]:
    """The keys of a report that maps are read from, as it has them."""

    def machine(one: MachineClock) -> dict[str, Any]:
        return {"name": one.name, "clock": one.clock} | saved.machine_keys(one)

    def epoch(one: Epoch, reach: Reach) -> dict[str, Any]:
        out: dict[str, Any] = {
            "guest_from": one.guest_from, "host_from": one.host_from, "offset": one.offset, "ratio": one.ratio,
            "frac_bits": one.frac_bits, "feasible": list(one.feasible) if one.feasible else None,
        }  # fmt: skip
        if one.band is not None:
            b = one.band
            out["bounds"] = [list(row) for row in zip(b.host, b.host[1:], b.lo, b.hi, strict=False)]
        return out | saved.epoch_keys(one, reach)

    def vcpu(one: CpuClock) -> dict[str, Any]:
        return saved.vcpu_keys(one) | {
            "guest_cpu": one.guest_cpu,
            "epochs": [epoch(e, r) for e, r in zip(one.epochs, one.reaches, strict=True)],
            "mis_stamped": [{"guest_from": a, "guest_to": b} for a, b in one.late],
        }

    guests = [machine(g.machine) | {"parent": g.parent, "vcpus": [vcpu(c) for c in g.cpus]} for g in maps.guests]
    return {"schema": 1, "host": machine(maps.host), "guests": guests, "realtime": saved.pairs_key(maps.pairs)}


def stamp(random: Random) -> int:
    return random.choice([*EDGES, random.getrandbits(64)])


def some_spans(random: Random) -> Spans:
    at, pairs = stamp(random), []
    for _ in range(random.randrange(4)):
        pairs.append((at % PERIOD, (at + 5) % PERIOD))
        at += random.randrange(6, 10**9)
    ends: list[tuple[int | None, int | None]] = list(pairs)
    if ends and random.random() < 0.5:
        ends[0] = None, ends[0][1]
    return Spans(tuple(ends))


def some_epoch(random: Random) -> tuple[Epoch, Reach]:
    offset = random.randrange(-(1 << 64), 1 << 64)
    band = None
    if random.random() < 0.4:
        start, edges = stamp(random), [0]
        for _ in range(random.randrange(1, 5)):
            edges.append(edges[-1] + random.randrange(1, 10**9))
        lo = [random.randrange(-1000, 0) for _ in edges[1:]]
        hosts = tuple((start + e) % PERIOD for e in edges)
        band = Band(hosts, tuple(lo), tuple(x + random.randrange(2000) for x in lo), random.randrange(10**6), 5)
    feasible = (
        (offset - random.randrange(99), offset + random.randrange(99))
        if band is None or random.random() < 0.5
        else None
    )
    host_from = random.choice((None, stamp(random)))
    first = stamp(random)
    epoch = Epoch(
        offset, random.choice((None, stamp(random))), host_from, feasible, random.randrange(1, PERIOD),
        random.randrange(64), band, random.choice((None, stamp(random))),
    )  # fmt: skip
    last = (first + random.randrange(1 << 40)) % PERIOD
    return epoch, Reach((first, last), some_spans(random), random.choice((None, stamp(random))))


def some_maps(random: Random) -> Maps:
    def machine(name: str) -> MachineClock:
        unit = random.choice(("ticks", "ns"))
        rate = random.choice((None, Rate(random.randrange(1, 1 << 32), random.randrange(33), "by a test")))
        span = random.choice((None, (stamp(random), stamp(random))))
        clock, counter = random.choice(("some clock", "mono_raw")), None
        if clock == "mono_raw" and random.random() < 0.5:
            k = random.randrange(-(1 << 90), 1 << 90)
            counter = ArchCounter(24_000_000, k, clock, k + random.randrange(1 << 40), "recording")
        return MachineClock(
            name, clock, unit, rate, span, random.choice(("", "aarch64")), random.choice((None, -5)), counter
        )

    def cpu(number: int) -> CpuClock:
        if random.random() < 0.2:
            return CpuClock(number, refusal="for a reason \x1b")
        epochs = [some_epoch(random) for _ in range(random.randrange(1, 4))]
        ends = [random.choice((End(), End(stamp(random), "since it changed"))) for _ in range(2)]
        stays = tuple((cpu, some_spans(random)) for cpu in range(random.randrange(3)))
        through = random.choice(
            (None, Through(random.choice(("shared", "own", "reference")), random.randrange(-(1 << 64), 1 << 64), stays))
        )
        late = tuple((stamp(random), stamp(random)) for _ in range(random.randrange(2)))
        maps, reaches = tuple(e for e, _ in epochs), tuple(r for _, r in epochs)
        return CpuClock(number, maps, reaches, *ends, random.randrange(2), late, through)

    names = ["l1", "l2", "other"][: random.randrange(1, 4)]
    guests = tuple(
        GuestClock(machine(n), "l1" if n == "l2" else "host", tuple(cpu(c) for c in range(random.randrange(1, 4))))
        for n in names
    )
    pairs = tuple(
        ClockPair(stamp(random), random.randrange(-(1 << 63), 1 << 63), random.randrange(99))
        for _ in range(random.randrange(3))
    )
    return Maps(machine("host"), guests, pairs)


@given(randoms)
@settings(max_examples=300)
def test_maps_of_every_kind_are_read_back_as_they_were(random: Random) -> None:
    maps = some_maps(random)
    assert saved.maps_from(json.loads(json.dumps(report_of(maps)))) == maps


EVIL = [
    None,
    True,
    -1,
    0,
    1.5,
    1 << 64,
    -(1 << 70),
    10**400,
    "",
    "text",
    [],
    [1],
    [[]],
    [[2, 1]],
    {},
    {"a": 1},
    float("inf"),
]


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where in a JSON value there is something."""
    out = [path] if path else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        out += places(inner, (*path, key))
    return out


@given(randoms)
@settings(max_examples=400)
def test_a_file_that_says_anything_is_read_or_refused_with_a_place(random: Random) -> None:
    report = json.loads(json.dumps(report_of(some_maps(random))))
    for _ in range(random.randrange(1, 4)):
        *above, last = random.choice(places(report))
        inner = report
        for key in above:
            inner = inner[key]
        if random.random() < 0.3 and isinstance(inner, dict):
            del inner[last]
        else:
            inner[last] = random.choice(EVIL)
        try:
            maps = saved.maps_from(report)
        except ValueError as err:
            assert str(err)
            return
    # what was read can be used, whatever it says
    stamps = np.array([0, 1, MASK, *(random.getrandbits(64) for _ in range(4))], np.uint64)
    for guest in maps.guests:
        if guest.cpus:
            for convert in (maps.to_host, maps.to_guest):
                answers = convert(stamps, guest.name, extrapolate=random.random() < 0.5)
                assert len(answers) == len(stamps)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda r: r.pop("schema"), "schema is missing"),
        (lambda r: r.update(schema=2), "schema 2"),
        (lambda r: r["host"].pop("unit"), "host.unit is missing"),
        (lambda r: r["host"].update(unit="years"), "host.unit"),
        (lambda r: r["guests"][0].update(parent="nobody"), "no host that is the first"),
        (lambda r: r["guests"][0].update(parent="vm"), "no host that is the first"),
        (lambda r: r["guests"][0].update(name="host"), "one name"),
        (lambda r: r["guests"][0]["vcpus"].append(r["guests"][0]["vcpus"][0]), "one guest_cpu"),
        (lambda r: r["guests"][0]["vcpus"][0].pop("conversion"), "vcpus[0].conversion is missing"),
        (lambda r: r["guests"][0]["vcpus"][0].update(epochs=[]), "epochs"),
        (lambda r: r["guests"][0]["vcpus"][0]["epochs"][0].update(feasible=None), "not bounded"),
        (lambda r: r["guests"][0]["vcpus"][0]["epochs"][0].update(feasible=[7, 6]), "no interval"),
        (lambda r: r["guests"][0]["vcpus"][0]["epochs"][0].update(ratio=0), "ratio 0"),
        (lambda r: r["guests"][0]["vcpus"][0]["epochs"][0].update(guest_seen=[9, 8]), "not in order"),
        (lambda r: r["guests"][0]["vcpus"][0]["epochs"][0].update(began_at=-1), "no stamp"),
        (lambda r: r["guests"][0]["vcpus"][0]["epochs"][0].update(host_within=[[5, 4]]), "not in order"),
        (lambda r: r["guests"][0]["vcpus"][0]["epochs"][0].update(offset="5"), "offset is no integer"),
        (lambda r: r["host"].update(rate={"mult": 0, "shift": 1, "source": ""}), "host.rate"),
        (lambda r: r.update(realtime=[{"stamp": -1, "realtime_ns": 0, "bound_ns": 0, "source": ""}]), "realtime[0]"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_file_is_said(change: Any, said: str) -> None:
    machine = MachineClock("host", "x86-tsc", "ticks")
    guest = MachineClock("vm", "x86-tsc", "ticks")
    clock = CpuClock(0, (Epoch(5, feasible=(4, 6)),), (Reach((1, 2)),))
    report = report_of(Maps(machine, (GuestClock(guest, "host", (clock,)),)))
    assert saved.maps_from(report)
    change(report)
    with pytest.raises(ValueError) as caught:
        saved.maps_from(report)
    assert said in str(caught.value)
