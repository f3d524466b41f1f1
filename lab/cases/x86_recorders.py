"""Other recorders, other kernels, and too little room."""

from lab.x86 import X86

CASES = [
    X86(
        name="x86-trace-cmd-agent",
        about="the guest is recorded by a stock trace-cmd agent",
        recorder="trace-cmd-agent",
    ),
    X86(
        name="x86-trace-cmd",
        about="a stock trace-cmd record -A with its own time synchronisation, the offsets of debugfs",
        recorder="trace-cmd",
    ),
    X86(
        name="x86-lossy",
        about="buffers of 32 KB a CPU and every event of kvm, sched, irq and timer: much is lost",
        options="--no-kallsyms --buffer-size 32K -e kvm -e sched -e irq -e timer -e raw_syscalls",
    ),
    X86(
        name="x86-one-vcpu",
        about="one vCPU, recorded with an old kernel on both sides",
        offsets=True,
        kernel="6.1",
        vcpus=1,
    ),
    X86(
        name="x86-new-kernel",
        about="the plain pair with the newest kernel that Debian has",
        offsets=True,
        kernel="7.3",
        watch=True,
    ),
]
