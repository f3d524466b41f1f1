"""What a machine boots: a kernel, a small initrd, and a disk, out of unpacked packages.

The disk is read-only and the same for the host and its guests (the host passes it on); what is written goes to memory.
It carries the kernel and the initrd as well, so that a host can boot guests with nothing else.
"""

from __future__ import annotations

import gzip
import hashlib
import lzma
import os
import re
import shutil
import stat
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from lab.packages import LabError, program

# what no machine of the lab needs
LEFT_OUT = (
    "usr/share/doc/*",
    "usr/share/man/*",
    "usr/share/locale/*",
    "usr/share/info/*",
    "usr/share/lintian/*",
    "usr/share/icons/*",
    "usr/share/qemu/edk2-*",
    "usr/share/qemu-efi*",
    "usr/share/zoneinfo/*",
    "usr/lib/*/perl*",
    "usr/share/perl*",
    "*/__pycache__/*",
)

# to the disk
BOOT_MODULES = ("virtio_pci", "virtio_blk", "ext4", "crc32c_generic?", "libcrc32c?", "overlay")
# of every machine: the ports that commands come by
COMMON_MODULES = ("virtio_console",)
# of the host: the share
SHARE_MODULES = ("9p", "9pnet_virtio")

# names given to busybox where no package brings the tool
TOOLS = """
sh mount umount mkdir insmod modprobe lsmod rmmod cat ls sleep echo cp mv rm ln hostname ip base64 tail head sed
grep awk printf ps kill dmesg uname tr cut sort wc dd touch chmod chroot env find xargs seq date mkfifo mktemp id stat
sync test timeout tee true false nc vi less readlink basename dirname nproc taskset
"""

INITRD_INIT = """#!/bin/sh
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
for module in $(cat /modules/order); do insmod /modules/$module; done
until [ -b /dev/vda ]; do sleep 0.1; done
mount -t ext4 -o ro /dev/vda /disk && mount -t tmpfs -o mode=755 rw /rw && mkdir /rw/upper /rw/work &&
mount -t overlay -o lowerdir=/disk,upperdir=/rw/upper,workdir=/rw/work root /new || exec sh
umount /proc /sys /dev
exec switch_root /new /lab/init
"""

# the commands' ends: lab-run runs one command and answers with one line; answers do not mix
INIT = """#!/bin/sh
export PATH=/lab/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root PYTHONDONTWRITEBYTECODE=1 LC_ALL=C.UTF-8
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev; mount -t tmpfs run /run
mkdir -p /dev/shm /dev/pts /run/lab; mount -t tmpfs shm /dev/shm; mount -t devpts pts /dev/pts; mount -t tmpfs tmp /tmp
ln -s /proc/self/fd /dev/fd
mount -t debugfs debugfs /sys/kernel/debug; mount -t tracefs tracefs /sys/kernel/tracing
ip link set lo up
grep -q lab.guest /proc/cmdline && cp /lab/guest-modules /run/lab/modules || cp /lab/modules /run/lab/modules
for module in $(cat /run/lab/modules); do modprobe $module; done
hostname "$(sed -n 's/.*lab.name=\\([^ ]*\\).*/\\1/p' /proc/cmdline)"
grep -q lab.guest /proc/cmdline || mount -t 9p -o trans=virtio,version=9p2000.L,msize=262144,cache=none lab /lab/share
[ -x /lab/start ] && /lab/start
port=$(lab-port 0)
exec 9<>$port
printf '\\n@lab up %s\\n' "$(uname -r)" >&9
while :; do
  while read -r word id text <&9; do
    [ "$word" = @run ] || continue
    echo "$text" | base64 -d > /run/lab/$id
    lab-run $id &
  done
  sleep 0.2
done
"""

LAB_PORT = """#!/bin/sh
for port in /sys/class/virtio-ports/*; do
  [ "$(cat $port/name)" = lab.$1 ] && echo /dev/${port##*/}
done
"""

LAB_RUN = """#!/bin/sh
cd /run/lab
sh ./$1 9>&- > $1.out 2>&1 < /dev/null
status=$?
until mkdir lock 2>/dev/null; do sleep 0.05; done
{ printf '\\n@done %s %s ' $1 $status; tail -c 400000 $1.out | base64 -w 0; echo; } >&9
rmdir lock
rm -f $1 $1.out
"""


@dataclass(frozen=True)
class System:
    """What a machine boots."""

    kernel: Path
    initrd: Path
    disk: Path
    release: str


def release(kernel_root: Path) -> str:
    """Return the release of the one kernel in a root of packages."""
    for folder in (kernel_root / "usr/lib/modules", kernel_root / "lib/modules"):
        if folder.is_dir() and (names := sorted(p.name for p in folder.iterdir() if (p / "kernel").is_dir())):
            return names[0]
    raise LabError(f"{kernel_root}: no modules of a kernel there")


def kernel(kernel_root: Path) -> Path:
    """Return the kernel image in a root of packages."""
    for pattern in ("boot/vmlinuz-*", "usr/lib/modules/*/vmlinuz", "usr/lib/linux/vmlinuz*", "boot/vmlinux-*"):
        if found := sorted(kernel_root.glob(pattern)):
            return found[0]
    raise LabError(f"{kernel_root}: no kernel image there")


def _content(file: Path) -> bytes:
    data = file.read_bytes()
    return lzma.decompress(data) if file.suffix == ".xz" else data


class Modules:
    """Modules of a kernel by name. What they depend on they say themselves: a package has no modules.dep."""

    def __init__(self, kernel_root: Path) -> None:
        self.release = release(kernel_root)
        base = next(
            folder / self.release
            for folder in (kernel_root / "usr/lib/modules", kernel_root / "lib/modules")
            if (folder / self.release).is_dir()
        )
        self._files = {p.name.split(".ko")[0].replace("-", "_"): p for p in base.glob("kernel/**/*.ko*")}
        builtin = base / "modules.builtin"
        lines = builtin.read_text().split() if builtin.exists() else []
        self._builtin = {Path(line).name.removesuffix(".ko").replace("-", "_") for line in lines}
        self._contents: dict[str, bytes] = {}

    def content(self, name: str) -> bytes:
        """Return a module's file, not compressed."""
        if name not in self._contents:
            self._contents[name] = _content(self._files[name])
        return self._contents[name]

    def needs(self, name: str) -> list[str]:
        """Return what a module says that it depends on, and what it says is to be loaded before it."""
        data = self.content(name)
        said = re.search(rb"\0depends=([^\0]*)\0", b"\0" + data)
        names = said[1].decode().split(",") if said and said[1] else []
        for before in re.findall(rb"\0softdep=pre: ([^\0]*)\0", data):
            names += [word for word in before.decode().split() if word.replace("-", "_") in self._files]
        return [name.replace("-", "_") for name in names]

    def order(self, wanted: Iterable[str]) -> list[str]:
        """Return names in the order in which they can be loaded; "NAME?" may be lacking."""
        done: list[str] = []

        def visit(name: str) -> None:
            if name in done or name in self._builtin:
                return
            if name not in self._files:
                raise LabError(f"kernel {self.release} has no module {name}")
            for other in self.needs(name):
                visit(other)
            done.append(name)

        for name in wanted:
            if not name.endswith("?"):
                visit(name)
            elif (bare := name[:-1]) in self._files:
                visit(bare)
        return done


def cpio(files: Mapping[str, bytes | str], folders: Iterable[str] = ()) -> bytes:
    """Return a newc archive (Documentation/driver-api/early-userspace/buffer-format.rst); str is a link."""
    out = bytearray()

    def add(number: int, name: str, mode: int, data: bytes) -> None:
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
        out.extend(b"070701" + b"".join(b"%08x" % field for field in fields) + name.encode() + b"\0")
        out.extend(bytes(-len(out) % 4) + data + bytes(-len(data) % 4))

    parents = {str(p) for name in (*files, *(f"{f}/x" for f in folders)) for p in Path(name).parents if str(p) != "."}
    for number, name in enumerate(sorted(parents), 1):
        add(number, name, stat.S_IFDIR | 0o755, b"")
    for number, (name, data) in enumerate(files.items(), len(parents) + 1):
        if isinstance(data, str):
            add(number, name, stat.S_IFLNK | 0o777, data.encode())
        else:
            add(number, name, stat.S_IFREG | 0o755, data)
    add(0, "TRAILER!!!", 0, b"")
    return bytes(out)


def initrd(path: Path, busybox: bytes, modules: Modules, names: Iterable[str], init: str = INITRD_INIT) -> Path:
    """Write an initrd: busybox, modules in their order, and an init."""
    order = modules.order(names)
    files: dict[str, bytes | str] = {"init": init.encode(), "bin/busybox": busybox}
    for tool in ("sh", "mount", "umount", "mkdir", "insmod", "cat", "sleep", "switch_root"):
        files[f"bin/{tool}"] = "busybox"
    files |= {f"modules/{name}.ko": modules.content(name) for name in order}
    files["modules/order"] = "".join(f"{name}.ko\n" for name in order).encode()
    path.write_bytes(gzip.compress(cpio(files, ("proc", "sys", "dev", "disk", "rw", "new")), 6, mtime=0))
    return path


def disk(path: Path, folder: Path) -> Path:
    """Write a folder as an ext4 file system without a journal."""
    tool = shutil.which("mke2fs") or shutil.which("mke2fs", path="/usr/sbin:/sbin")
    if tool is None:
        raise LabError("mke2fs is not here: apt-get install e2fsprogs")
    size = sum(4096 + (p.lstat().st_size + 4095) // 4096 * 4096 for p in folder.rglob("*"))
    making = path.with_suffix(".making")
    making.unlink(missing_ok=True)
    command = [tool, "-q", "-t", "ext4", "-O", "^has_journal", "-b", "4096", "-m", "0", "-d", str(folder), str(making)]
    done = subprocess.run([*command, f"{size * 11 // 10 // 1024 + 32768}k"], capture_output=True, text=True)
    if done.returncode:
        raise LabError(f"mke2fs: {done.stderr.strip()}")
    making.rename(path)
    return path


def _link_tree(source: Path, target: Path) -> None:
    """Give a tree a second name, file by file, without what is left out."""
    for folder, folders, names in os.walk(source):
        here = Path(folder)
        place = target / here.relative_to(source)
        place.mkdir(parents=True, exist_ok=True)
        for name in [*names, *(f for f in folders if (here / f).is_symlink())]:
            relative = str((here / name).relative_to(source))
            if not any(fnmatch(relative, pattern) for pattern in LEFT_OUT):
                os.link(here / name, place / name, follow_symlinks=False)
        folders[:] = [f for f in folders if not (here / f).is_symlink()]


def system(
    cache: Path,
    root: Path,
    kernel_root: Path,
    modules: Iterable[str],
    extra: Mapping[str, bytes] | None = None,
    python: Path | None = None,
    guest_modules: Iterable[str] | None = None,
) -> System:
    """Return kernel, initrd and disk of a machine; made once for the same parts.

    `root` has to hold busybox-static's busybox. `modules` are loaded by the init, in order; those of the initrd come
    before them. `extra` are more files of the disk. `python` is an amd64 root with the same Python: its modules are
    compiled beforehand, as a package would when it is installed; emulated, that is most of what a start takes.
    `guest_modules`: what a machine with lab.guest in its command line loads instead; it has no share then.
    """
    names = [*BOOT_MODULES, *COMMON_MODULES, *SHARE_MODULES, *modules]
    in_guests = names if guest_modules is None else [*BOOT_MODULES, *COMMON_MODULES, *guest_modules]
    parts = repr(
        (
            root.name,
            kernel_root.name,
            names,
            in_guests,
            sorted((extra or {}).items()),
            bool(python),
            LEFT_OUT,
            INIT,
            INITRD_INIT,
        )
    )
    key = hashlib.sha256((parts + LAB_RUN + LAB_PORT).encode()).hexdigest()[:12]
    folder = cache / "images" / key
    made = System(folder / "vmlinuz", folder / "initrd", folder / "disk", release(kernel_root))
    if made.disk.exists():
        return made
    folder.mkdir(parents=True, exist_ok=True)
    known = Modules(kernel_root)
    busybox = next((p for p in (root / "usr/bin/busybox", root / "bin/busybox") if p.exists()), None)
    if busybox is None:
        raise LabError(f"{root}: no busybox; add busybox-static to its packages")
    shutil.copyfile(kernel(kernel_root), made.kernel)
    initrd(made.initrd, busybox.read_bytes(), known, BOOT_MODULES)

    stage = folder / "stage"
    shutil.rmtree(stage, ignore_errors=True)
    _link_tree(root, stage)
    for name in ("proc", "sys", "dev", "run", "tmp", "root", "lab/share", "lab/bin", "boot", "etc"):
        (stage / name).mkdir(parents=True, exist_ok=True)
    written = {
        "lab/init": INIT.encode(),
        "lab/bin/lab-run": LAB_RUN.encode(),
        "lab/bin/lab-port": LAB_PORT.encode(),
        "lab/modules": "\n".join(known.order(names)).encode(),
        "lab/guest-modules": "\n".join(known.order(in_guests)).encode(),
        "etc/passwd": b"root:x:0:0:root:/root:/bin/sh\n",
        "etc/group": b"root:x:0:\n",
        **(extra or {}),
    }
    for name, data in written.items():
        place = stage / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.unlink(missing_ok=True)
        place.write_bytes(data)
        place.chmod(0o755)
    _modules(stage, known, [*names, *in_guests])
    _busybox(stage)
    if python is not None:
        _compile(stage, python)
    for name in ("vmlinuz", "initrd"):
        shutil.copyfile(folder / name, stage / "boot" / name)
    disk(made.disk, stage)
    shutil.rmtree(stage)
    return made


def _compile(stage: Path, python: Path) -> None:
    """Compile Python's own modules: the result does not depend on the architecture, and is not held against dates."""
    command = [*program(python, "usr/bin/python3"), "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash"]
    for folder in stage.glob("usr/lib/python3.*"):
        command += ["-s", str(stage), str(folder)]
    # status 1: some file of the tests of Python's own does not compile
    subprocess.run(command, env={**os.environ, "PYTHONHOME": str(python / "usr")}, stdout=subprocess.DEVNULL)


def _modules(stage: Path, known: Modules, names: Iterable[str]) -> None:
    """Put modules where modprobe looks for them, with the list that busybox's reads."""
    base = stage / "usr/lib/modules" / known.release
    base.mkdir(parents=True)
    if not (stage / "lib").exists():
        (stage / "lib").symlink_to("usr/lib")
    if not (stage / "lib/modules").exists():
        (stage / "lib/modules").symlink_to("../usr/lib/modules")
    lines = []
    for name in known.order(names):
        (base / f"{name}.ko").write_bytes(known.content(name))
        needed = [other for other in known.order(known.needs(name)) if other != name]
        lines.append(f"{name}.ko:{''.join(f' {other}.ko' for other in reversed(needed))}\n")
    (base / "modules.dep").write_text("".join(lines))


def _busybox(stage: Path) -> None:
    """Give busybox the names of tools that no package of the root brings."""
    for tool in TOOLS.split():
        if not any((stage / folder / tool).exists() for folder in ("usr/bin", "usr/sbin", "bin", "sbin")):
            (stage / "usr/bin" / tool).symlink_to("busybox")
    if not (stage / "usr/sbin/modprobe").exists():
        (stage / "usr/sbin").mkdir(exist_ok=True)
        (stage / "usr/sbin/modprobe").symlink_to("../bin/busybox")
