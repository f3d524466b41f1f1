"""Counterpoint: the kernel traces of a KVM host and its guests on one timeline, exactly, with proof."""
