"""What kind of machine a recording is of, where it tells."""

from __future__ import annotations

from counterpoint.traces.recording import Recording


def is_arm64(recording: Recording) -> bool:
    """Whether the recording shows an arm64 kernel: by its kvm_exit (arch/arm64/kvm/trace_arm.h), else by its name."""
    leave = recording.format_named("kvm", "kvm_exit")
    return recording.options.uname.endswith("aarch64") if leave is None else leave.field("esr_ec") is not None


_FAMILIES = {
    **dict.fromkeys(("x86_64", "i386", "i486", "i586", "i686"), "x86"),
    **dict.fromkeys(("aarch64", "aarch64_be", "armv8l", "armv7l"), "arm"),
    **dict.fromkeys(("ppc", "ppc64", "ppc64le"), "powerpc"),
    **dict.fromkeys(("riscv32", "riscv64"), "riscv"),
    **dict.fromkeys(("s390", "s390x"), "s390"),
    **dict.fromkeys(("loongarch32", "loongarch64"), "loongarch"),
    **dict.fromkeys(("mips", "mips64"), "mips"),
}
"""Machines as uname has them, whose kernels one KVM can run: its own architecture, in either width."""


def machine_of(recording: Recording) -> str:
    """The machine that the recording's UNAME names, such as x86_64; "" where it has none."""
    return (recording.options.uname.split() or [""])[-1]


def can_run(host: Recording, guest: Recording) -> bool:
    """Whether KVM on ``host`` may have run ``guest``, by their machines; True where one is not known."""
    families = {_FAMILIES.get(machine_of(recording)) for recording in (host, guest)}
    return None in families or len(families) == 1
