"""The plain pair, with every source of offsets."""

from lab.x86 import X86

CASE = X86(
    name="x86-plain",
    about="two vCPUs, recorded by Counterpoint's agent over vsock; every source of offsets",
    offsets=True,
    watch=True,
)
