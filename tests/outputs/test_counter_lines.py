"""What the table says of CNTVOFF: once, and with where it is from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from counterpoint.outputs.counter_lines import counter_lines, shown_claims
from counterpoint.simulate import World, WorldOptions
from counterpoint.timeline.sync import SyncResult, sync

PROBE = "lab:set_cntvoff:off"


def proved(folder: Path, *, with_k: bool, flags: dict[str, Any] | None = None, **how: Any) -> tuple[SyncResult, Any]:
    options: dict[str, Any] = {"arch": "arm64", "events": 5000, "seed": 1} | how
    truth = World(WorldOptions(**options)).write(folder / "world")
    clocks = {"host": truth["clocks"]["host"]} | {g["file"][:-4]: g["clock"] for g in truth["guests"]}
    ks = [f"{name}={clock['segments'][0]['k']}" for name, clock in clocks.items()] if with_k else []
    files = [folder / "world" / f for f in ("host.dat", *(g["file"] for g in truth["guests"]))]
    parents = {g["file"][:-4]: g["parent"] for g in truth["guests"]}
    return sync(*files, ks=ks, parents=parents, **(flags or {})), truth


def test_with_k_each_cpus_cntvoff_and_its_interval(tmp_path: Path) -> None:
    result, truth = proved(tmp_path, with_k=True, pauses=1)
    first, *cpus = counter_lines(result.guests[0])
    assert first == (
        "guest: the counter runs at 24000000 Hz (by the stamps, if it does not step by several ticks);"
        " K of host given, of guest given"
    )
    for line, vcpu, known in zip(cpus, result.guests[0].vcpus, truth["guests"][0]["vcpus"], strict=True):
        texts = []
        for epoch, right in zip(vcpu.epochs, known["epochs"], strict=True):
            assert epoch.ticks is not None
            assert epoch.ticks.feasible is not None
            lo, hi = epoch.ticks.feasible
            assert lo <= right["cntvoff"] <= hi
            texts.append(f"{epoch.ticks.cntvoff} ({lo} to {hi})")
        assert line == f"guest cpu {vcpu.guest_cpu}: CNTVOFF {', then '.join(texts)}"


def test_without_k_what_sources_say_and_why_it_is_not_known(tmp_path: Path) -> None:
    result, truth = proved(tmp_path, with_k=False, probes=True)
    value = truth["guests"][0]["vcpus"][0]["epochs"][0]["cntvoff"]
    lines = list(counter_lines(result.guests[0]))
    assert "K of host and guest is not known (--k host=K --k guest=K says it)" in lines[0]
    assert lines[1:] == [f"guest: {PROBE} says that CNTVOFF is {value}"]
    assert [shown_claims(result, result.guests[0], v) for v in result.guests[0].vcpus] == [[], []]


def test_a_number_typed_by_hand_is_answered_in_a_line_of_its_own(tmp_path: Path) -> None:
    result, _ = proved(tmp_path, with_k=False, flags={"cntvoffs": ["0=5"]})
    (proof,) = shown_claims(result, result.guests[0], result.guests[0].vcpus[0])
    assert proof.claim.cntvoff == 5


def test_where_all_is_in_ns_it_is_said(tmp_path: Path) -> None:
    result, _ = proved(tmp_path, with_k=False, khz=1_000_000)
    (line,) = counter_lines(result.guests[0])
    assert "does not show in the stamps of host and guest" in line
    given, _ = proved(tmp_path / "given", with_k=True, khz=1_000_000, flags={"frequency": 10**9})
    assert next(counter_lines(given.guests[0])).startswith(
        "guest: the counter runs at 1000000000 Hz (given); K of host"
    )


def test_the_sum_is_told_of_the_nested_guest_alone(tmp_path: Path) -> None:
    result, truth = proved(tmp_path, with_k=True, nested=1, probes=True, khz=62_500, events=9000)
    own = truth["guests"][0]["vcpus"][0]["epochs"][0]["cntvoff"]
    (rest,) = {e["cntvoff"] for v in truth["guests"][1]["vcpus"] for e in v["epochs"]}
    l1, l2 = result.guests
    rest -= (rest >> 63) << 64
    (line,) = [text for text in counter_lines(l2) if "while it ran" in text]
    assert line.startswith(f"l2 cpu 0: while it ran {PROBE} of host logged {own + rest}: {own} of guest plus {rest} (")
    assert [shown_claims(result, l1, v) for v in l1.vcpus] == [[], []]


def test_other_machines_have_no_such_lines(tmp_path: Path) -> None:
    result, _ = proved(tmp_path, with_k=False, arch="x86")
    assert list(counter_lines(result.guests[0])) == []
