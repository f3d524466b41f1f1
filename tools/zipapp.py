"""Make counterpoint.pyz: one file that runs the live commands on a machine with nothing but Python 3.9 or later.

The same sources give the same bytes: names in order, fixed times and modes.
"""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

SOURCE = Path(__file__).parent.parent / "src" / "counterpoint"
PARTS = (
    "__init__.py",
    "_version.py",
    "errors.py",
    "dat_layout.py",
    "commands/__init__.py",
    "commands/agent.py",
    "commands/common.py",
    "commands/doctor.py",
    "commands/main.py",
    "commands/offsets.py",
    "commands/record.py",
    "outputs/__init__.py",
    "outputs/files.py",
    "outputs/printable.py",
)
MAIN = """import sys

if sys.version_info < (3, 9):
    sys.exit("counterpoint: Python 3.9 or later is needed (this is %d.%d)" % sys.version_info[:2])

from counterpoint.commands.main import entry

entry()
"""


def build(target: Path) -> None:
    """Write the zip file ``target``, executable."""
    live = sorted(f"live/{path.name}" for path in (SOURCE / "live").glob("*.py"))
    content = {f"counterpoint/{name}": (SOURCE / name).read_bytes() for name in sorted([*PARTS, *live])}
    content["__main__.py"] = MAIN.encode()
    with target.open("wb") as file:
        file.write(b"#!/usr/bin/env python3\n")
        with zipfile.ZipFile(file, "w") as archive:
            for name, data in sorted(content.items()):
                info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
                info.create_system = 3
                info.external_attr = 0o644 << 16
                # stored, not deflated: zlib's versions make different bytes
                archive.writestr(info, data, zipfile.ZIP_STORED)
    target.chmod(0o755)


if __name__ == "__main__":
    build(Path(sys.argv[1]))
