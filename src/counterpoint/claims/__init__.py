"""Claims: what a source says about a guest's offset. One file a source."""
