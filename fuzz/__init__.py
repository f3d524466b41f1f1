"""Fuzzing of every reader: what a file from elsewhere may do is to be refused in a sentence, and nothing else."""
