"""kvm_pvclock_update: the rate of a guest's kvm-clock, tried first, held against the windows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from counterpoint.claims import pvclock
from counterpoint.claims.pvclock import PvRate, rates_of
from counterpoint.proof.relation import EXACT, KVM_CLOCK_ERROR, kvm_clock_relations
from counterpoint.proof.verdicts import Verdict
from counterpoint.simulate import World, WorldOptions
from counterpoint.simulate.counters import pvclock_scale
from counterpoint.timeline.sync import sync
from counterpoint.traces.recording import Recording
from proof.test_drift import untrue


def written(folder: Path, **how: Any) -> tuple[World, Recording, Recording]:
    world = World(WorldOptions(**{"events": 6000, "guest_clock": "local", "pvclock": True, **how}))
    world.write(folder)
    return world, Recording.open(folder / "host.dat"), Recording.open(folder / "guest.dat")


def test_the_rate_is_that_of_the_events(tmp_path: Path) -> None:
    _, host, _ = written(tmp_path)
    mul, shift = pvclock_scale(2_400_000_000)
    assert rates_of(host) == [PvRate(mul, shift)]
    assert abs(float(rates_of(host)[0].rate) - 1 / 2.4) < 1e-9
    assert rates_of(Recording.open(tmp_path / "guest.dat")) == []


def test_from_a_tsc_it_is_exact_and_between_clocks_in_ns_nearly(tmp_path: Path) -> None:
    _, host, guest = written(tmp_path / "tsc", tsc2nsec=True)
    (told,) = kvm_clock_relations(host, guest)
    assert told.error == EXACT
    _, host, guest = written(tmp_path / "ns", clock="local")
    (told,) = kvm_clock_relations(host, guest)
    assert told.error == KVM_CLOCK_ERROR
    _, host, guest = written(tmp_path / "slewed", clock="mono")
    assert kvm_clock_relations(host, guest) == []


def test_scaled_guests_tell_a_rate_where_the_hosts_is_known(tmp_path: Path) -> None:
    _, host, guest = written(tmp_path / "known", guest_khz=3_100_000, tsc2nsec=True)
    (told,) = kvm_clock_relations(host, guest)
    assert told.error == KVM_CLOCK_ERROR
    _, host, guest = written(tmp_path / "unknown", guest_khz=3_100_000)
    assert kvm_clock_relations(host, guest) == []


@pytest.mark.parametrize("how", [{"tsc2nsec": True}, {"clock": "local"}, {"timers": False}])
def test_it_is_proved_and_narrows_the_bounds(tmp_path: Path, how: dict[str, Any]) -> None:
    world, host, guest = written(tmp_path, **how)
    told, free = sync(host, guest), sync(host, guest, use_claims=False)
    assert not untrue(world, told)
    for vcpu, alone in zip(told.guests[0].vcpus, free.guests[0].vcpus, strict=True):
        (epoch,) = vcpu.epochs
        assert epoch.fitted is not None
        assert epoch.fitted.rate_source == pvclock.SOURCE
        assert [c.verdict for c in vcpu.claims if c.claim.source == pvclock.SOURCE] == [Verdict.PROVED]
        other = alone.epochs[0].fitted
        if other is not None:
            assert other.rate_source == ""
            assert epoch.fitted.band.width < other.band.width


def test_a_wrong_one_is_refuted_and_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world, host, guest = written(tmp_path, tsc2nsec=True)
    (right,) = rates_of(host)
    wrong = PvRate(right.mul + right.mul // 20_000, right.shift)
    monkeypatch.setattr(pvclock, "rates_of", lambda _host: [wrong])
    result = sync(host, guest)
    assert not untrue(world, result)
    for vcpu in result.guests[0].vcpus:
        assert vcpu.epochs[0].fitted is not None
        assert vcpu.epochs[0].fitted.rate_source == ""
        assert any("this clock is not kvm-clock" in note for note in vcpu.notes)
        assert not any(c.claim.source == pvclock.SOURCE for c in vcpu.claims)


def test_without_the_stable_flag_it_is_no_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, host, _ = written(tmp_path)
    column = host.column
    monkeypatch.setattr(host, "column", lambda event, name, rows: column(event, name, rows) * (name != "flags"))
    assert rates_of(host) == []
