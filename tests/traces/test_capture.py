"""``k`` of capture.json: what relates a recording's stamps to its counter."""

from __future__ import annotations

import argparse
import json

import pytest

from counterpoint.commands.common import expand
from counterpoint.errors import BadFileError
from counterpoint.traces.capture import Capture

K = -51935628879218171


def write(folder, **more):
    content = {"schema": 1, "host": "host.dat", "guests": [{"file": "vm.dat"}], **more}
    (folder / "capture.json").write_text(json.dumps(content))
    return folder


def test_it_is_what_the_flag_says(tmp_path):
    write(tmp_path, k={"host": [K, K + 5]})
    args = argparse.Namespace(host=str(tmp_path), guests=[], tid=[], parent=[], further=[], k=["vm=7"])

    expand(args)

    assert Capture.open(tmp_path).ks == {"host": (K, K + 5)}
    assert args.k == ["vm=7", f"host={K}..{K + 5}"]


@pytest.mark.parametrize(
    "k", [[], 5, {"host": K}, {"host": [K]}, {"host": [K, K - 1]}, {"host": [K, "x"]}, {"host": [0, 1 << 200]}]
)
def test_what_is_none_is_refused(tmp_path, k):
    with pytest.raises(BadFileError, match='"k"'):
        Capture.open(write(tmp_path, k=k))


def test_a_capture_without_it(tmp_path):
    assert Capture.open(write(tmp_path)).ks == {}
