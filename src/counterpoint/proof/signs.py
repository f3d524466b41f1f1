"""Signs in the recordings that the clocks are not what a proof by windows takes them for, each said in one sentence.

Taken are: one counter for all CPUs of the host, guests that read it in guest mode, offsets that change now and then.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import numpy as np

from counterpoint.clocks.counter import I64, relative
from counterpoint.traces.recording import Recording

STORM = 16
"""More changes of one vCPU's offset than this are no doing of a VMM: starting or restoring a VM makes a few."""

_ISA_VMX, _ISA_SVM = 1, 2
"""The kvm_exit event's field ``isa`` (arch/x86/kvm/trace.h: KVM_ISA_VMX, KVM_ISA_SVM)."""

_READS = {(_ISA_VMX, 16), (_ISA_VMX, 51), (_ISA_SVM, 0x6E), (_ISA_SVM, 0x87)}
"""Exits of RDTSC and RDTSCP (arch/x86/include/uapi/asm/vmx.h: EXIT_REASON_RDTSC..., svm.h: SVM_EXIT_RDTSC...)."""

_CONFIDENTIAL = {(_ISA_VMX, 77): "TDCALL", (_ISA_SVM, 0x403): "VMGEXIT"}
"""Exits that only TDX (EXIT_REASON_TDCALL) and SEV-ES or SNP guests (SVM_EXIT_VMGEXIT) make."""

_TSC_BASED = (1, 3)
"""The host clocksources by ``host_clock`` that KVM trusts: TSC and Hyper-V's TSC page (include/vdso/clocksource.h)."""

_PVCLOCK = 2

_CONSOLE = (
    (
        re.compile(r"[Ss]witched to clocksource ([\w-]{1,32})"),
        "its clocksource became {} while it was recorded: stamps in mono, boot, tai and mono_raw before and after are"
        " of two counters, and one offset or rate does not hold for both",
    ),
    (
        re.compile(r"marking (?:clocksource )?'?tsc'? (?:as )?unstable", re.IGNORECASE),
        "its kernel found the TSC unstable: x86-tsc stamps of different CPUs may disagree, and KVM rewrites the offsets"
        " of vCPUs as they move",
    ),
    (
        re.compile(r"PM: (suspend|hibernation)[: ]"),
        "it was put to sleep ({}) while it was recorded: its counters may have stopped or begun anew, and the offsets"
        " before and after differ",
    ),
)


def signs_of(recordings: Mapping[str, Recording], host: str) -> list[str]:
    """What the recordings, by name, show of clocks not to be trusted; ``host``: the one whose CPUs share a clock."""
    out = []
    for name, recording in recordings.items():
        found = [*_console(recording), *_asleep(recording), *_master_clock(recording), *_storms(recording)]
        found += [*_trapped(recording), *_confidential(recording)]
        if name == host:
            found += [*_steps(recording), *_apart(recording)]
        out += [f"{name}: {text}" for text in found]
    return out


def _console(recording: Recording) -> Iterator[str]:
    """What the kernel's own log says, where it was recorded (printk:console)."""
    event = recording.format_named("printk", "console")
    rows = recording.rows(event)
    if event is None or not len(rows):
        return
    try:
        lines = recording.batch(event, rows).text("msg")
    except KeyError:
        return
    for pattern, meaning in _CONSOLE:
        hit = next((found for line in lines if (found := pattern.search(line))), None)
        if hit is not None:
            yield meaning.format(*(group for group in hit.groups() if group))


def _asleep(recording: Recording) -> Iterator[str]:
    """power:suspend_resume comes with each step of going to sleep and waking (kernel/power/suspend.c)."""
    if len(recording.rows(recording.format_named("power", "suspend_resume"))):
        yield (
            "it was suspended or resumed while it was recorded (suspend_resume): its counters may have stopped or begun"
            " anew, and KVM moves the offsets of x86 guests then"
        )


def _master_clock(recording: Recording) -> Iterator[str]:
    """kvm_update_master_clock, sent as KVM decides anew (arch/x86/kvm/x86.c: pvclock_update_vm_gtod_copy)."""
    event = recording.format_named("kvm", "kvm_update_master_clock")
    rows = recording.rows(event)
    if event is None or not len(rows):
        return
    try:
        used, clock, matched = (
            recording.column(event, field, rows) for field in ("use_master_clock", "host_clock", "offset_matched")
        )
    except KeyError:
        return
    off = used == 0
    if (off & ~np.isin(clock, (*_TSC_BASED, _PVCLOCK))).any():
        yield (
            "its clocksource is not the TSC (kvm_update_master_clock): the kernel may have found the TSC unstable, so"
            " that x86-tsc stamps of different CPUs disagree, and KVM rewrites the offsets of vCPUs as they move"
        )
    if (off & np.isin(clock, _TSC_BASED) & (matched != 0)).any():
        yield (
            "KVM gave up the master clock although the vCPUs' TSCs match (kvm_update_master_clock): it saw a TSC step"
            " back, or a guest uses an old kvm-clock; offsets may have been rewritten before the recording began"
        )
    if (off & (matched == 0)).any():
        yield (
            "KVM found the vCPUs of a VM on different TSC offsets (kvm_update_master_clock): one vCPU's offset says"
            " nothing of another's"
        )


def _storms(recording: Recording) -> Iterator[str]:
    """Many kvm_write_tsc_offset of one vCPU: catch-up mode (kvm_guest_time_update), or an unstable TSC (vcpu_load)."""
    event = recording.format_named("kvm", "kvm_write_tsc_offset")
    rows = recording.rows(event)
    if event is None or not len(rows):
        return
    try:
        vcpu = recording.column(event, "vcpu_id", rows).astype(np.int64)
        before, after = (recording.column(event, f"{when}_tsc_offset", rows) for when in ("previous", "next"))
    except KeyError:
        return
    changed = before != after
    of = np.stack([recording.pid[rows][changed].astype(np.int64), vcpu[changed]])
    which, count = np.unique(of, axis=1, return_counts=True)
    for at in np.flatnonzero(count > STORM)[:1].tolist():
        yield (
            f"KVM changed the TSC offset of vCPU {which[1][at]} {count[at]} times (thread {which[0][at]}), as it does"
            " where it emulates a TSC rate by catching up or the host's TSC is unstable: no one offset holds for long"
        )


def _exits(recording: Recording) -> tuple[I64, I64, I64]:
    """The kvm_exit events of x86: (isa, basic reason, thread)."""
    none = np.zeros(0, np.int64)
    event = recording.format_named("kvm", "kvm_exit")
    rows = recording.rows(event)
    if event is None or not len(rows) or event.field("isa") is None or event.field("exit_reason") is None:
        return none, none, none
    try:
        isa = recording.column(event, "isa", rows).astype(np.int64)
        reason = recording.column(event, "exit_reason", rows).astype(np.int64)
    except KeyError:
        return none, none, none
    # the upper half of VMX's are flags
    return isa, np.where(isa == _ISA_VMX, reason & 0xFFFF, reason), recording.pid[rows].astype(np.int64)


def _trapped(recording: Recording) -> Iterator[str]:
    """Exits by which KVM emulates a read of the TSC."""
    isa, reason, tid = _exits(recording)
    hit = np.zeros(len(isa), np.bool_)
    for wanted_isa, wanted in _READS:
        hit |= (isa == wanted_isa) & (reason == wanted)
    if hit.any():
        yield (
            f"the TSC reads of thread {int(tid[hit][0])}'s guest are emulated ({int(hit.sum())} exits of RDTSC or"
            " RDTSCP): its x86-tsc stamps are taken outside guest mode, where run windows do not hold them"
        )


def _confidential(recording: Recording) -> Iterator[str]:
    """Exits of guests whose TSC may be none of KVM's business."""
    isa, reason, tid = _exits(recording)
    for (wanted_isa, wanted), name in _CONFIDENTIAL.items():
        hit = (isa == wanted_isa) & (reason == wanted)
        if hit.any():
            yield (
                f"thread {int(tid[hit][0])} runs a confidential guest ({name} exits): under TDX or SNP's secure TSC the"
                " offset is not KVM's, and what KVM says of it (kvm_write_tsc_offset, debugfs) means nothing; run"
                " windows still hold"
            )


def _steps(recording: Recording) -> Iterator[str]:
    """Stamps of one CPU that step back from one event to the next."""
    for stream in recording.streams:
        stamp = relative(recording.stamp[stream.first : stream.last], recording.base)
        back = np.flatnonzero(stamp[1:] < stamp[:-1])
        if len(back):
            by = int((stamp[back] - stamp[back + 1]).max())
            yield (
                f"stamps of CPU {stream.cpu} step back {len(back)} times (by up to {by} {recording.unit}): its clock"
                " was set while it was recorded, and what its windows bound before and after differs"
            )


def _apart(recording: Recording) -> Iterator[str]:
    """Threads that seem to run on two CPUs at once: the stamps of those CPUs disagree by as much."""
    event = recording.format_named("sched", "sched_switch")
    rows = np.sort(recording.rows(event))
    if event is None or len(rows) < 2:
        return
    try:
        prev = recording.column(event, "prev_pid", rows).astype(np.int64)
        following = recording.column(event, "next_pid", rows).astype(np.int64)
    except KeyError:
        return
    stamp, stream = relative(recording.stamp[rows], recording.base), recording.stream_of[rows]
    lost = np.searchsorted(np.sort(recording.losses.row), rows, side="right")
    # from a switch to a thread to the next one on that CPU, which is away from it
    stay = (stream[1:] == stream[:-1]) & (following[:-1] == prev[1:]) & (following[:-1] > 0) & (lost[1:] == lost[:-1])
    at = np.flatnonzero(stay)
    order = np.lexsort((stamp[at], following[at]))
    at = at[order]
    cpu = np.array([s.cpu for s in recording.streams], np.int64)[stream[at]]
    begin, end, pid = stamp[at], stamp[at + 1], following[at]
    over = end[:-1] - begin[1:]
    twice = (pid[1:] == pid[:-1]) & (cpu[1:] != cpu[:-1]) & (over > 0)
    if twice.any():
        worst = int(np.where(twice, over, 0).argmax())
        yield (
            f"the stamps of CPUs {int(cpu[worst])} and {int(cpu[worst + 1])} disagree by at least {int(over[worst])}"
            f" {recording.unit}: thread {int(pid[worst])} was on both at once; bounds of vCPUs that moved between CPUs"
            " are uncertain by as much"
        )
