"""Counter arithmetic, epochs and clock maps: integers only."""
