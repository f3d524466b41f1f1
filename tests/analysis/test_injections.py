"""Interrupts across the boundary: what the rules pair, and what they leave alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from counterpoint.analysis.injections import (
    NEVER,
    InGuest,
    Interrupts,
    Source,
    apicv_interrupts,
    arm64_timers,
    x86_interrupts,
)
from writers.scripts import kind, placed, scripted

A, B = 147, 148
HOST = {
    "entry": kind(20, "kvm:kvm_entry", "unsigned int vcpu_id"),
    "exit": kind(21, "kvm:kvm_exit", "unsigned int exit_reason"),
    "accept": kind(22, "kvm:kvm_apic_accept_irq", "u32 apicid", "u16 dm", "u16 tm", "u8 vec"),
    "inject": kind(23, "kvm:kvm_inj_virq", "unsigned int vector", "bool soft", "bool reinjected"),
    "ipi": kind(24, "kvm:kvm_apic_ipi", "u32 icr_low", "u32 dest_id"),
    "msi": kind(25, "kvm:kvm_msi_set_irq", "u64 address", "u64 data"),
    "apicv": kind(26, "kvm:kvm_apicv_accept_irq", "u32 apicid", "u16 dm", "u16 tm", "u8 vec"),
    "timer": kind(27, "kvm:kvm_timer_update_irq", "unsigned long vcpu_id", "u32 irq", "int level"),
    "mark": kind(29, "test:mark"),
}
GUEST = {
    "irq": kind(30, "irq:irq_handler_entry", "int irq", "text name"),
    "expire": kind(31, "timer:hrtimer_expire_entry", "u64 hrtimer"),
    "vector": kind(33, "irq_vectors:local_timer_entry", "int vector"),
    "leave": kind(34, "irq_vectors:local_timer_exit", "int vector"),
    "switch": kind(32, "sched:sched_switch", "pid_t next_pid"),
}
IRQ = "common_flags=9"
IDS = {A: 0, B: 1}

# a first injection of the vector: since when it was pending is not known
FIRST = (f"0 100 entry {A}", f"0 110 exit {A}", f"0 112 accept {A} vec=236", f"0 115 inject {A} vector=236",
         f"0 118 entry {A}", f"0 150 exit {A}")  # fmt: skip
# asked for twice, injected once
SECOND = (f"0 152 accept {A} vec=236", f"1 155 accept {B} vec=236", f"0 160 inject {A} vector=236", f"0 165 entry {A}",
          f"0 200 exit {A}")  # fmt: skip
HANDLED = (f"0 120 expire 0 {IRQ}", f"0 170 expire 0 {IRQ}", f"0 175 irq 0 irq=3 name=x {IRQ}", "0 180 switch 0")


def x86(tmp_path: Path, host: tuple[str, ...], guest: tuple[str, ...] = HANDLED, **options: object) -> Interrupts:
    width = options.pop("width", 2)
    ids = options.pop("ids", IDS)
    inside = placed(scripted(tmp_path / "guest.dat", GUEST, *guest, lost=options.pop("guest_lost", None)))  # type: ignore[arg-type]
    outside = placed(scripted(tmp_path / "host.dat", HOST, *host, **options))  # type: ignore[arg-type]
    guests = {A: InGuest(inside, np.full(len(inside.recording), width, np.int64), 0)}
    found = x86_interrupts(outside, guests, ids)  # type: ignore[arg-type]
    assert found is not None
    return found


def rows(found: Interrupts) -> list[tuple[int, ...]]:
    """(vector, requested, injected, entered, handled) with -1 for what is not certain."""
    columns = (found.number, found.requested, found.injected, found.entered, found.handled)
    return [tuple(-1 if v == NEVER else v for v in row) for row in zip(*(c.tolist() for c in columns), strict=True)]


def test_from_the_first_request_to_the_handler(tmp_path):
    found = x86(tmp_path, (*FIRST, *SECOND))

    assert rows(found) == [(236, -1, 115, 118, 120), (236, 152, 160, 165, 170)]
    assert found.sender.tolist() == [-1, A]
    assert found.width.tolist() == [2, 2]


def test_events_outside_of_interrupts_are_no_handlers(tmp_path):
    guest = ("0 120 expire 0 common_flags=1", "0 168 switch 0", "0 172 switch 0 common_flags=72")

    assert [row[4] for row in rows(x86(tmp_path, (*FIRST, *SECOND), guest))] == [-1, -1]


def test_an_injection_that_is_repeated_counts_once(tmp_path):
    again = (f"0 166 exit {A}", f"0 167 inject {A} vector=236 reinjected=1", f"0 168 entry {A}")

    assert rows(x86(tmp_path, (*FIRST, *SECOND, *again)))[1] == (236, 152, 160, 165, 170)


def test_a_handler_after_the_next_injection_is_that_ones(tmp_path):
    third = (f"0 166 exit {A}", f"0 167 inject {A} vector=37", f"0 168 entry {A}")

    assert rows(x86(tmp_path, (*FIRST, *SECOND, *third)))[1:] == [(236, 152, 160, 165, -1), (37, -1, 167, 168, 170)]


@pytest.mark.parametrize(
    ("guest", "width", "handled"),
    [
        (HANDLED, 10, 170),  # 160 at the earliest: the vCPU did not run between 150 and 165
        (HANDLED, 11, -1),  # 159: it may be of the window before
        (("0 149 expire 0 common_flags=9", "0 170 expire 0 common_flags=9"), 10, 170),
        (("0 149 expire 0 common_flags=9", "0 178 expire 0 common_flags=9"), 17, -1),  # the one before may be it
    ],
)
def test_no_handler_where_the_bound_leaves_it_open(tmp_path, guest, width, handled):
    assert rows(x86(tmp_path, (*FIRST, *SECOND), guest, width=width))[1][4] == handled


def test_nothing_is_paired_across_lost_events(tmp_path):
    mark = "1 158 mark 1"

    assert rows(x86(tmp_path, (*FIRST, *SECOND, mark), lost={(1, 158): 1}))[1] == (236, -1, 160, 165, 170)
    assert rows(x86(tmp_path, (*FIRST, *SECOND, mark), lost={(0, 165): 1}))[1] == (236, 152, 160, -1, -1)
    assert rows(x86(tmp_path, (*FIRST, *SECOND), guest_lost={(0, 170): 3}))[1] == (236, 152, 160, 165, -1)


def test_vcpus_of_one_id_are_not_told_apart(tmp_path):
    assert [row[1] for row in rows(x86(tmp_path, (*FIRST, *SECOND), ids={A: 0, B: 0}))] == [-1, -1]


def test_where_the_processor_delivers_no_handler_is_certain(tmp_path):
    found = x86(tmp_path, (*FIRST, *SECOND, f"0 190 apicv {A} apicid=0 vec=55"))

    assert [row[3:] for row in rows(found)] == [(118, -1), (165, -1)]


def test_what_the_processor_delivers_is_known_by_its_vector(tmp_path):
    asked = "150 apicv {} apicid=0 vec=236"
    host = ["0 100 entry 147", f"0 {asked.format(A)}", f"1 155 apicv {B} apicid=0 vec=236",
            "0 156 apicv 9 apicid=0 vec=37", "0 157 apicv 9 apicid=0 dm=1024 vec=236", "0 900 exit 147"]  # fmt: skip
    guest = [f"0 {at} vector 0 vector=236 {IRQ}" for at in (120, 170)] + [
        "0 130 leave 0 vector=236",
        "1 160 vector 0 vector=236",
    ]
    inside = placed(scripted(tmp_path / "guest.dat", GUEST, *guest))

    def found(width: int) -> list[tuple[int, ...]]:
        guests = {A: InGuest(inside, np.full(len(inside.recording), width, np.int64), 0)}
        pairs = apicv_interrupts(placed(scripted(tmp_path / "host.dat", HOST, *host)), guests, IDS)
        assert pairs is not None
        return rows(pairs)

    assert found(5) == [(236, 150, -1, -1, 170)]
    assert found(20) == []
    assert apicv_interrupts(placed(scripted(tmp_path / "host.dat", HOST, *FIRST)), {}, IDS) is None


def test_who_asked(tmp_path):
    host = []
    for n, line in enumerate(
        (
            "1 {} ipi 148 icr_low=236", "0 {} msi 9 data=236", "0 {} msi 9 data=37",
            "1 {} ipi 148 icr_low=251",
        )
    ):  # fmt: skip
        at = 200 + 100 * n
        asks = line.split()
        host += [line.format(at), f"{asks[0]} {at + 1} accept {asks[3]} vec=236", f"0 {at + 5} inject {A} vector=236",
                 f"0 {at + 6} entry {A}", f"0 {at + 50} exit {A}"]  # fmt: skip

    found = x86(tmp_path, (*FIRST, *host))

    assert found.source.tolist()[1:] == [Source.IPI, Source.MSI, Source.OTHER, Source.OTHER]
    assert found.sender.tolist()[1:] == [B, 9, 9, B]


ARM = (
    "0 100 entry 147", "0 108 timer 147 vcpu_id=0 irq=27 level=1", "0 110 exit 147", "0 120 entry 147",
    "0 150 exit 147", "0 155 timer 147 vcpu_id=0 irq=27 level=0", "0 156 timer 147 vcpu_id=0 irq=27 level=1",
    "0 158 timer 147 vcpu_id=0 irq=27 level=1", "0 160 entry 147", "0 200 exit 147",
)  # fmt: skip


def arm64(tmp_path: Path, host: tuple[str, ...], guest: tuple[str, ...], width: int = 2) -> list[tuple[int, ...]]:
    inside = placed(scripted(tmp_path / "guest.dat", GUEST, *guest))
    guests = {A: InGuest(inside, np.full(len(inside.recording), width, np.int64), 0)}
    found = arm64_timers(placed(scripted(tmp_path / "host.dat", HOST, *host)), guests, {A: 0})
    assert found is not None
    return rows(found)


TIMERS = ("0 122 irq 0 irq=11 name=arch_timer", "0 165 irq 0 irq=4 name=virtio0", "0 170 irq 0 irq=11 name=arch_timer")


def test_arm64s_timer_from_its_level_to_its_handler(tmp_path):
    assert arm64(tmp_path, ARM, TIMERS) == [(27, 156, -1, 160, 170)]
    # 122 may be after the level rose
    assert arm64(tmp_path, ARM, TIMERS, width=34) == []


def test_two_timers_of_arm64_are_not_told_apart(tmp_path):
    assert arm64(tmp_path, (*ARM, "0 210 timer 147 vcpu_id=0 irq=30 level=1"), TIMERS) == []
