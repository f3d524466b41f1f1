"""``python -m counterpoint``."""

from counterpoint.commands.main import entry

entry()
