"""One zip file that needs nothing but Python 3.9."""

from __future__ import annotations

import ast
import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]


def build(target: Path) -> Path:
    subprocess.run([sys.executable, ROOT / "tools" / "zipapp.py", target], check=True)
    return target


def run(file: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # isolated, and without the site's packages: the standard library alone
    return subprocess.run(
        [sys.executable, "-I", "-S", file, *arguments], capture_output=True, text=True, check=False, timeout=60
    )


def test_the_same_sources_give_the_same_bytes(tmp_path):
    one, other = build(tmp_path / "one.pyz"), build(tmp_path / "other.pyz")

    assert hashlib.sha256(one.read_bytes()).digest() == hashlib.sha256(other.read_bytes()).digest()


def test_it_runs_alone(tmp_path):
    file = build(tmp_path / "counterpoint.pyz")

    doctor = run(file, "doctor")
    assert doctor.returncode in (0, 1) and "machine" in doctor.stdout, doctor.stderr
    for name in ("offsets", "record", "doctor", "agent"):
        assert run(file, name, "--help").returncode == 0
    other = run(file, "sync", "host.dat", "guest.dat")
    assert other.returncode == 2 and "it needs the whole package" in other.stderr
    assert run(file, "--version").stdout.startswith("counterpoint ")


def test_all_of_it_is_python_39(tmp_path):
    with zipfile.ZipFile(build(tmp_path / "counterpoint.pyz")) as archive:
        names = archive.namelist()
        for name in names:
            ast.parse(archive.read(name), feature_version=(3, 9))

    assert "__main__.py" in names and "counterpoint/live/inject.py" in names
    assert not any("numpy" in name or "traces" in name for name in names)
