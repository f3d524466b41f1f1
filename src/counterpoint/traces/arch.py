"""What kind of machine a recording is of, where it tells."""

from __future__ import annotations

from counterpoint.traces.recording import Recording


def is_arm64(recording: Recording) -> bool:
    """Whether the recording shows an arm64 kernel: by its kvm_exit (arch/arm64/kvm/trace_arm.h), else by its name."""
    leave = recording.format_named("kvm", "kvm_exit")
    return recording.options.uname.endswith("aarch64") if leave is None else leave.field("esr_ec") is not None
