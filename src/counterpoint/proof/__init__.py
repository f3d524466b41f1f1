"""The proof: run windows, feasible offsets, matching, epochs, verdicts."""
