"""The plain pair, with every source of offsets."""

from lab.arm64 import Arm64

CASE = Arm64(
    name="arm64-plain",
    about="two vCPUs, recorded by Counterpoint's agent over vsock; every source of offsets",
    offsets=True,
)
