"""One file a case: what is started, what happens to it, and what the truth was."""
