"""Debian's packages as files: fetched by an apt of our own, unpacked into folders, never installed.

apt checks what it fetches against the archive's signature. The state is private (lists, archives, an empty dpkg
status), so that nothing foreign is installed on this machine, and any architecture and suite can be asked for.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
MIRROR = "http://deb.debian.org/debian"


class LabError(Exception):
    """The lab cannot go on; the text says what is missing."""


def default_cache() -> Path:
    """Return the folder that packages, roots and images are kept in: COUNTERPOINT_LAB_CACHE, or one below ~/.cache."""
    return Path(os.environ.get("COUNTERPOINT_LAB_CACHE") or Path.home() / ".cache" / "counterpoint-lab")


def mirror() -> str:
    """Return the Debian archive to use: COUNTERPOINT_LAB_MIRROR, what this machine is set up for, or Debian's."""
    if given := os.environ.get("COUNTERPOINT_LAB_MIRROR"):
        return given
    sources = Path("/etc/apt/sources.list.d/debian.sources")
    if sources.exists() and (found := re.search(r"^URIs:\s*(\S+/debian)/?\s*$", sources.read_text(), re.MULTILINE)):
        return found[1]
    return MIRROR


@dataclass(frozen=True)
class Suites:
    """Suites of Debian's archive for one architecture; `names[0]` is the base, later ones are used where asked for."""

    architecture: str
    names: tuple[str, ...]
    cache: Path

    @property
    def _state(self) -> Path:
        return self.cache / "apt" / f"{self.architecture}-{'+'.join(self.names)}"

    def _apt(self, tool: str, *arguments: str, cwd: Path | None = None) -> str:
        state = self._state
        options = {
            "Dir::State": state / "state",
            "Dir::State::status": state / "status",
            "Dir::Cache": state / "cache",
            "Dir::Cache::archives": self.cache / "debs",
            "Dir::Etc::sourcelist": "/dev/null",
            "Dir::Etc::sourceparts": state / "sources",
            "Dir::Etc::preferences": "/dev/null",
            "Dir::Etc::preferencesparts": "/dev/null",
            "APT::Architecture": self.architecture,
            "APT::Architectures": self.architecture,
            "APT::Install-Recommends": "false",
            "APT::Sandbox::User": "",
            "APT::Default-Release": self.names[0],
            "APT::Update::Post-Invoke": "",
            "APT::Update::Post-Invoke-Success": "",
            "Acquire::Languages": "none",
            "Debug::NoLocking": "true",
            "pkgCacheFile::Generate": "true",
        }
        command = [tool, *(f"-o{key}={value}" for key, value in options.items()), "-q", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, stdin=subprocess.DEVNULL)
        if done.returncode:
            raise LabError(f"{tool} {' '.join(arguments)[:200]}: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout

    def _update(self) -> None:
        """Fetch the lists once for this cache: a second run uses the same versions, and no network."""
        state = self._state
        if (state / "updated").exists():
            return
        if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
            raise LabError("the lab needs apt-get and dpkg-deb (Debian, Ubuntu)")
        if not KEYRING.exists():
            raise LabError(f"{KEYRING} is not here: apt-get install debian-archive-keyring")
        for folder in (state / "state/lists/partial", state / "cache", state / "sources", self.cache / "debs/partial"):
            folder.mkdir(parents=True, exist_ok=True)
        (state / "status").touch()
        (state / "sources/lab.sources").write_text(
            f"Types: deb\nURIs: {mirror()}\nSuites: {' '.join(self.names)}\nComponents: main\n"
            f"Architectures: {self.architecture}\nSigned-By: {KEYRING}\n"
        )
        self._apt("apt-get", "update")
        (state / "updated").touch()

    def closure(self, wanted: list[str]) -> list[tuple[str, str]]:
        """Return name and version of what is wanted ("NAME" or "NAME/SUITE") and of all that it depends on."""
        self._update()
        text = self._apt("apt-get", "install", "--simulate", *wanted)
        return [(found[1], found[2]) for found in re.finditer(r"^Inst (\S+) \((\S+) ", text, re.MULTILINE)]

    def fetch(self, wanted: list[str], only: str | None = None) -> list[Path]:
        """Return the .deb files of the closure of `wanted`; `only` is a pattern that names have to match."""
        packages = [(name, version) for name, version in self.closure(wanted) if fnmatch(name, only or "*")]
        folder = self.cache / "debs"
        files = [
            folder / f"{name.split(':')[0]}_{version.replace(':', '%3a')}_{self.architecture}.deb"
            for name, version in packages
        ]
        # "all" packages have another name: look for either
        found = [next((f for f in (file, _for_all(file)) if f.exists()), None) for file in files]
        lacking = [f"{name}={version}" for (name, version), file in zip(packages, found, strict=True) if file is None]
        if lacking:
            self._apt("apt-get", "download", *lacking, cwd=folder)
        return [next(f for f in (file, _for_all(file)) if f.exists()) for file in files]

    def root(self, wanted: list[str], only: str | None = None) -> Path:
        """Return a folder in which the closure of `wanted` is unpacked; made once."""
        key = hashlib.sha256(repr((self.architecture, self.names, sorted(wanted), only)).encode()).hexdigest()[:12]
        root = self.cache / "roots" / f"{self.architecture}-{wanted[0].split('/')[0]}-{key}"
        if not root.exists():
            files = self.fetch(wanted, only)
            making = root.with_name(root.name + ".making")
            shutil.rmtree(making, ignore_errors=True)
            making.mkdir(parents=True)
            # base-files first: its links /bin -> usr/bin are where others' files go
            for file in sorted(files, key=lambda file: (not file.name.startswith("base-files_"), file.name)):
                subprocess.run(["dpkg-deb", "--extract", file, making], check=True)
            making.rename(root)
        return root


def _for_all(file: Path) -> Path:
    return file.with_name(file.name.rsplit("_", 1)[0] + "_all.deb")


LOADER = "ld-linux-x86-64.so.2"


def program(root: Path, path: str) -> list[str]:
    """Return how a program of an amd64 root is run on this machine: by the root's own loader and libraries."""
    libraries = [root / "usr/lib/x86_64-linux-gnu", root / "lib/x86_64-linux-gnu"]
    loader = next(p for p in (root / "usr/lib64", root / "lib64", libraries[0], libraries[1]) if (p / LOADER).exists())
    return [str(loader / LOADER), "--library-path", ":".join(map(str, libraries)), str(root / path)]


def environment(root: Path) -> dict[str, str]:
    """Return the environment for `program`: QEMU looks for its own modules where this says."""
    return {**os.environ, "QEMU_MODULE_DIR": str(root / "usr/lib/x86_64-linux-gnu/qemu")}
