"""babeltrace2's Python module, where it is installed: it reads CTF."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

from counterpoint.errors import UsageError

DEBIAN = Path("/usr/lib/python3/dist-packages/bt2")
"""Where Debian's and Ubuntu's python3-bt2 is; a virtual environment does not look there."""


def babeltrace() -> Any:  # noqa: ANN401 (it has no types)
    """The bt2 module; UsageError where there is none for this Python."""
    try:
        import bt2
    except ImportError as err:
        found = _debian()
        if found is None:
            running = ".".join(map(str, sys.version_info[:2]))
            raise UsageError(
                "CTF is read by babeltrace2's Python module bt2, which is not installed for this Python"
                f" ({running}; {err}): install python3-bt2 (Debian, Ubuntu) or python3-babeltrace (Fedora), made for"
                " the system's Python, and run counterpoint with that"
            ) from None
        return found
    return bt2


def _debian() -> Any | None:  # noqa: ANN401
    spec = importlib.util.spec_from_file_location(
        "bt2", DEBIAN / "__init__.py", submodule_search_locations=[str(DEBIAN)]
    )
    if spec is None or spec.loader is None or not DEBIAN.is_dir():
        return None
    before = set(sys.modules)
    module = sys.modules["bt2"] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except ImportError:
        # it is of another Python
        for name in set(sys.modules) - before:
            del sys.modules[name]
        return None
    return module
