"""Text of a file, made safe for a terminal. Imports nothing: error messages need it, too."""


def printable(text: str) -> str:
    """Text without the characters that steer a terminal."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)
