"""The lab: real hosts with KVM and real guests, in emulated machines, on any machine (docs/lab.md)."""
