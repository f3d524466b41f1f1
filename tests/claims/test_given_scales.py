"""Claims files: the rate of a scaled counter."""

from __future__ import annotations

import json

import pytest

from counterpoint.claims.given import read_claims
from counterpoint.errors import BadFileError


def written_claims(tmp_path, *entries) -> str:
    path = tmp_path / "claims.jsonl"
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return str(path)


def test_a_scale_is_read_and_unknown_keys_are_left_alone(tmp_path):
    plain = {"cpu": 0, "offset": -5, "vm": {"pid": 7}, "host_counter": 3, "unit": "ticks"}
    scaled = {"guest": "web", "cpu": 1, "offset": 9, "ratio": 3 << 47, "frac_bits": 48, "host_from": 4, "host_to": None}

    (none, one), (guest, other) = read_claims(written_claims(tmp_path, plain, scaled))

    assert (none, one.ratio, one.frac_bits, one.scale.is_identity) == (None, 1, 0, True)
    assert (guest, other.ratio, other.frac_bits, other.host_from) == ("web", 3 << 47, 48, 4)
    assert not other.scale.is_identity


@pytest.mark.parametrize(
    "wrong", [{"ratio": 5}, {"frac_bits": 5}, {"ratio": 0, "frac_bits": 32}, {"ratio": 1, "frac_bits": 64}]
)
def test_half_a_scale_is_refused(tmp_path, wrong):
    with pytest.raises(BadFileError, match="line 1 is no claim: its 'ratio' and 'frac_bits'"):
        read_claims(written_claims(tmp_path, {"cpu": 0, "offset": 1, **wrong}))
