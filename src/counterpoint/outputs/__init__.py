"""Writers of a proved timeline."""
