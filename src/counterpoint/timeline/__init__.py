"""The timeline: all recordings in one order, in host time."""
