"""What machines boot, without booting one."""

import gzip
import lzma
import shutil
import subprocess

import pytest

from lab.images import Modules, cpio, initrd
from lab.packages import LabError


def kernel_root(folder, modules, builtin=()):
    base = folder / "usr/lib/modules/6.0-test"
    for name, text in modules.items():
        path = base / f"kernel/drivers/{name}"
        path.parent.mkdir(parents=True, exist_ok=True)
        data = b"\x7fELF..." + b"".join(b"\0" + line.encode() for line in text) + b"\0"
        path.write_bytes(lzma.compress(data) if name.endswith(".xz") else data)
    (base / "modules.builtin").write_text("".join(f"kernel/fs/{name}.ko\n" for name in builtin))
    return folder


def test_modules_are_loaded_after_what_they_need(tmp_path):
    root = kernel_root(
        tmp_path,
        {
            "a.ko.xz": ["license=GPL", "depends=b-b,c"],
            "b-b.ko": ["depends=c,d"],
            "c.ko": ["depends="],
            "d.ko": ["depends=", "softdep=pre: e built-in"],
            "e.ko": ["depends="],
        },
        builtin=["f"],
    )

    assert Modules(root).order(["a", "f", "g?"]) == ["c", "e", "d", "b_b", "a"]


def test_a_module_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(LabError, match="has no module kvm_amd"):
        Modules(kernel_root(tmp_path, {"a.ko": []})).order(["kvm_amd"])


@pytest.mark.skipif(shutil.which("cpio") is None, reason="cpio is not installed")
def test_the_archive_is_what_cpio_reads(tmp_path):
    archive = cpio({"init": b"#!/bin/sh\n", "bin/busybox": b"\x7fELF", "bin/sh": "busybox"}, folders=["proc"])

    subprocess.run(["cpio", "-i", "--quiet"], input=archive, cwd=tmp_path, check=True)

    assert (tmp_path / "init").read_bytes() == b"#!/bin/sh\n"
    assert (tmp_path / "bin/sh").readlink().name == "busybox"
    assert (tmp_path / "bin/busybox").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "proc").is_dir()


def test_an_initrd_is_the_same_each_time(tmp_path):
    root = kernel_root(tmp_path, {"a.ko": ["depends="]})
    one = initrd(tmp_path / "one", b"busybox", Modules(root), ["a"]).read_bytes()
    two = initrd(tmp_path / "two", b"busybox", Modules(root), ["a"]).read_bytes()

    assert one == two
    assert b"a.ko\n" in gzip.decompress(one)
