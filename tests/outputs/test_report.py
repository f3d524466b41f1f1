"""The JSON of ``sync`` and ``verify``: its keys, their types, and integers of any size."""

from __future__ import annotations

import json
import types
from pathlib import Path
from typing import Any

import pytest

from counterpoint.commands.main import main
from counterpoint.outputs.report import sync_report
from counterpoint.simulate import World, WorldOptions
from counterpoint.timeline.sync import sync
from writers.worlds import OffsetChange, tiny_pair

ENOUGH = {"windows": 300, "guest_events": 900}
Shape = Any


def optional(kind: Any) -> Any:
    return (kind, types.NoneType)


PLAIN: Shape = {"name": str, "file": str, "clock": str, "cpus": int, "events": int, "lost_events": int}
RECORDING: Shape = PLAIN | {
    "unit": str, "rate": optional({"mult": int, "shift": int, "source": str}), "from": optional(int),
    "to": optional(int), "arch": optional(str), "date_us": optional(int),
    "arch_counter": optional({"hz": int, "k": [int], "source": str}),
}  # fmt: skip
WITNESS: Shape = {
    "bound": int, "guest_stamp": int, "guest_event": str, "host_window": [optional(int)],
    "host_events": [optional(str)],
}  # fmt: skip
EPOCH: Shape = {
    "guest_from": optional(int), "guest_to": optional(int), "guest_sure": [optional(int)], "doubtful": int,
    "host_from": optional(int), "host_to": optional(int),
    "offset": optional(int), "unit": str, "ratio": int, "frac_bits": int, "source": optional(str), "verdict": str,
    "feasible": optional([int]), "width_ns": optional(int), "checked": int, "inside": int, "violations": int,
    "unknown": int, "evidence_bits": int, "witnesses": {"low": optional(WITNESS), "high": optional(WITNESS)},
    "near": optional(int), "guest_seen": optional([int]), "host_within": optional([[optional(int)]]),
    "began_at": optional(int),
}  # fmt: skip
COUNTEREXAMPLE: Shape = {
    "guest_stamp": int, "guest_event": str, "host_stamp": int, "host_gap": [optional(int)], "reason": str,
}  # fmt: skip
CLAIM: Shape = {
    "source": str, "detail": optional(str), "offset": optional(int), "ratio": int, "frac_bits": int,
    "host_from": optional(int), "host_to": optional(int), "verdict": str, "inside": int, "violations": int,
    "unknown": int,
    "reason": optional(str), "counterexample": optional(COUNTEREXAMPLE),
}  # fmt: skip
END: Shape = {"until": optional(int), "reason": optional(str), "firm": bool}
CONVERSION: Shape = {
    "refused": optional(str), "before": END, "after": END, "rounding": int,
    "through": optional({"clock": str, "constant": int, "stays": dict}),
}  # fmt: skip
MIS_STAMPED: Shape = {"guest_from": int, "guest_to": int, "events": int, "late_by": optional([int])}
VCPU: Shape = {
    "guest_cpu": int, "host_tid": optional(int), "matched_by": str, "verdict": str, "epochs": [EPOCH],
    "claims": [CLAIM], "mis_stamped": [MIS_STAMPED], "notes": [str], "conversion": CONVERSION,
    "unplaced": [{"guest_from": int, "guest_to": int, "events": int, "hosts": [str]}],
}  # fmt: skip
TIMELINE: Shape = {
    "events": int, "from_ns": optional(int), "to_ns": optional(int), "unplaced": int, "unproved": int,
    "ns_source": optional(str),
}  # fmt: skip
JOIN: Shape = {
    "source": str, "verdict": str, "guests": [str], "at": int, "host_at": int, "interval": [optional(int)],
    "offset": optional(int), "unit": str, "ratio": int, "frac_bits": int, "rate_ppm": int, "last_exit": optional(int),
    "not_after": optional(int),
    "assumption": str, "notes": [str],
}  # fmt: skip
PAIR: Shape = {"stamp": int, "realtime_ns": int, "bound_ns": int, "source": str}
VERIFY: Shape = {
    "schema": int, "host": RECORDING, "guests": [RECORDING | {"parent": str, "vcpus": [VCPU]}], "warnings": [str],
    "realtime": [PAIR],
    "hosts": [RECORDING | {"join": optional(JOIN), "realtime": [PAIR]}],
}  # fmt: skip
SYNC: Shape = VERIFY | {"timeline": TIMELINE}
K: Shape = {"lo": int, "hi": int, "source": str}
MAY_BE_ADDED = {
    "candidates": [[int]],
    "by_epoch": [{"epoch": int, "verdict": str, "inside": int, "violations": int, "unknown": int}],
    "spans": int,
    "counter": {
        "hz": int, "hz_source": str, "hz_others": [int], "host_k": optional(K), "guest_k": optional(K),
        "host_k_by_claims": dict,
    },
    "cntvoff_sums": [
        {
            "guest_cpu": int, "host": str, "source": str, "cntvoff": int, "of_parent": int, "of_guest": int,
            "events": int,
        }
    ],
    "cntvoff": optional(int), "cntvoff_feasible": optional([int]), "cntvoff_change": optional([int]),
    "cntvoff_reason": optional(str), "counter_hz": optional(int), "counter_hz_source": optional(str),
    "host_k": optional(str), "guest_k": optional(str),
    "cntvoff_range": optional([int]), "offset_range": optional([int]),
}  # fmt: skip


def differs(value: Any, shape: Shape, where: str = "$") -> list[str]:
    """Where ``value`` is not of the shape: exactly these keys, values of these types."""
    if isinstance(shape, tuple):
        return [] if value is None else differs(value, shape[0], where)
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            return [f"{where} is no object"]
        keys = set(value) - (set(MAY_BE_ADDED) - set(shape))
        wrong = [f"{where}.{key} {'is new' if key in keys else 'is missing'}" for key in keys ^ set(shape)]
        return wrong + [
            text for key in value if key not in keys ^ set(shape)
            for text in differs(value[key], shape.get(key) or MAY_BE_ADDED[key], f"{where}.{key}")
        ]  # fmt: skip
    if isinstance(shape, list):
        if not isinstance(value, list):
            return [f"{where} is no list"]
        return [text for i, item in enumerate(value) for text in differs(item, shape[0], f"{where}[{i}]")]
    return [] if type(value) is shape else [f"{where} is {type(value).__name__}"]


def made(path: Path, **how: Any) -> list[str]:
    host, guest, _ = tiny_pair(**(ENOUGH | how))
    return [str(host.write(path / "host.dat")), str(guest.write(path / "guest.dat"))]


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"vcpus": 2, "claims": False},
        {"arch": "arm64"},
        {"change": OffsetChange(-5_000_000, 0), "windows": 700, "guest_events": 2000},
        {"windows": 5, "guest_events": 4, "claims": False},
        {"lost": 300},
        {"offset": (1 << 63) - 7, "start": (1 << 64) - 10_000_000},
    ],
)
def test_the_report_has_exactly_the_keys_of_its_schema(tmp_path: Path, how: dict[str, Any]) -> None:
    result = sync(*made(tmp_path, **how))
    text = json.dumps(sync_report(result), allow_nan=False)
    assert differs(json.loads(text), SYNC) == []
    assert differs(sync_report(result, merged=False), VERIFY) == []


def test_a_refuted_claim_and_an_unmatched_cpu_have_the_same_shape(tmp_path: Path) -> None:
    files = made(tmp_path, claims=False)
    for claim in ("0=5", "0=-38775412000", f"0={1 << 62}", "3=1"):
        assert differs(sync_report(sync(*files, offsets=[claim])), SYNC) == []
    _, other, _ = tiny_pair(seed=9, start=10**15, **ENOUGH)  # type: ignore[arg-type]
    other.write(tmp_path / "other.dat")
    report = sync_report(sync(files[0], tmp_path / "other.dat", offsets=["0=5"]))
    assert differs(report, SYNC) == []


def test_what_the_report_says(tmp_path: Path) -> None:
    host, guest = made(tmp_path, vcpus=2)
    report = sync_report(sync(host, guest))
    assert report["schema"] == 1
    assert report["host"]["file"] == host
    (machine,) = report["guests"]
    assert (machine["name"], machine["parent"], machine["events"]) == ("guest", "host", 1800)
    for vcpu in machine["vcpus"]:
        (epoch,) = vcpu["epochs"]
        assert (vcpu["verdict"], vcpu["matched_by"]) == ("proved", "guest-option")
        assert (epoch["unit"], epoch["ratio"], epoch["frac_bits"], epoch["source"]) == ("ticks", 1, 0, "time_shift")
        assert epoch["checked"] == epoch["inside"] + epoch["violations"] == 900
        low, high = epoch["feasible"]
        assert low <= epoch["offset"] <= high
        assert [epoch["witnesses"][side]["bound"] for side in ("low", "high")] == [low, high]
    assert report["timeline"]["events"] == report["host"]["events"] + machine["events"]


def test_ns_recordings_say_so_and_need_no_rate(tmp_path: Path) -> None:
    report = sync_report(sync(*made(tmp_path, arch="arm64")))
    (epoch,) = report["guests"][0]["vcpus"][0]["epochs"]
    assert epoch["unit"] == "ns"
    assert epoch["width_ns"] == epoch["feasible"][1] - epoch["feasible"][0]
    assert report["timeline"]["ns_source"] == "clock"


def test_integers_beyond_2_to_the_53_are_exact(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    offset = (1 << 62) + 1
    files = made(tmp_path, offset=offset, start=(1 << 63) + 1)
    assert main(["sync", *files, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    (epoch,) = report["guests"][0]["vcpus"][0]["epochs"]
    assert epoch["offset"] == offset
    witness = epoch["witnesses"]["low"]
    assert witness["host_window"][1] > 1 << 63
    assert (witness["guest_stamp"] - witness["bound"]) % (1 << 64) == witness["host_window"][1]


@pytest.mark.parametrize("command", ["sync", "verify"])
def test_the_commands_print_it(tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    files = made(tmp_path)
    assert main([command, *files, "--json"]) == 0
    assert differs(json.loads(capsys.readouterr().out), SYNC if command == "sync" else VERIFY) == []
    assert main([command, *files, "--json", "--offset", "0=17"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["guests"][0]["vcpus"][0]["verdict"] == "refuted"


@pytest.mark.parametrize("further", [True, False])
def test_a_further_host_adds_its_keys_alone(tmp_path: Path, further: bool) -> None:
    World(WorldOptions(migrate=True, events=2500, seed=1)).write(tmp_path)
    hosts = [tmp_path / "host-b.dat"] if further else []
    report = sync_report(sync(tmp_path / "host.dat", tmp_path / "guest.dat", hosts=hosts))
    epochs = [e for v in report["guests"][0]["vcpus"] for e in v["epochs"]]
    added = [(e.pop("host"), type(e.pop("host_tid"))) for e in epochs if "host" in e]
    assert added == ([("host-b", int)] * 2 if further else [])
    there = [v.pop("conversion_on") for v in report["guests"][0]["vcpus"] if "conversion_on" in v]
    assert [differs(t, {"host-b": CONVERSION}) for t in there] == ([[], []] if further else [])
    assert len(report["hosts"]) == further
    assert differs(report, SYNC) == []
