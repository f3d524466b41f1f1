"""Recordings: trace.dat files to columns of events."""
