"""Other kernels, other CPUs, more VMs."""

from lab.arm64 import Arm64

CASES = [
    Arm64(
        name="arm64-one-vcpu-6.1",
        about="one vCPU, with an old kernel on both sides: the offset by a probe of __kvm_timer_set_cntvoff",
        kernel="6.1",
        vcpus=(1,),
        offsets=True,
    ),
    Arm64(
        name="arm64-new-kernel",
        about="the newest kernel that Debian has, on a CPU with FEAT_ECV: the physical counter has an offset too",
        kernel="7.3",
        cpu="max,pauth-impdef=on,sve=off,sme=off,cntfrq=62500000",
    ),
    Arm64(
        name="arm64-two-vms",
        about="two VMs at once, of one and of two vCPUs, each with its own offset",
        vcpus=(1, 2),
        offsets=True,
        memory="400M",
    ),
]
