"""Claims and K typed by hand or handed over in a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from counterpoint.claims.given import parse_cntvoff, parse_k, read_claims, read_ks
from counterpoint.claims.model import Claim, CounterClaim
from counterpoint.errors import BadFileError, UsageError


def written(path: Path, text: str) -> Path:
    file = path / "claims"
    file.write_text(text)
    return file


def test_cntvoff_is_a_signed_number_of_64_bits() -> None:
    assert parse_cntvoff("0=13991199888") == (None, CounterClaim("given", 13991199888, guest_cpu=0))
    assert parse_cntvoff("vm1:2=-5") == ("vm1", CounterClaim("given", -5, guest_cpu=2))
    assert parse_cntvoff("0=0xffffffffffffffff")[1].cntvoff == -1


@pytest.mark.parametrize("text", ["", "0", "0=", "=1", "a=1", "0=1.5", "-1=5", "0=0x1ffffffffffffffff"])
def test_what_is_no_cntvoff_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--cntvoff"):
        parse_cntvoff(text)


def test_k_is_a_number_or_an_interval() -> None:
    assert parse_k("host=-51935628879218171") == ("host", (-51935628879218171,) * 2)
    assert parse_k("a=b=0x10..32") == ("a=b", (16, 32))


@pytest.mark.parametrize(
    "text", ["", "5", "host", "host=", "=5", "host=5..", "host=6..5", "host=x", f"host={1 << 128}"]
)
def test_what_is_no_k_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="NAME=K"):
        parse_k(text)


def test_a_file_holds_claims_in_both_units_and_k(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        '{"cpu": 0, "offset": -5, "source": "vmm"}\n'
        '{"guest": "vm1", "cpu": 1, "cntvoff": 7, "source": "vmm", "host_from": 100, "host_to": 200}\n'
        '{"machine": "host", "k": -12}\n\n{"machine": "vm1", "k": [3, 4]}\n',
    )
    assert read_claims(path) == [
        (None, Claim("vmm", -5, guest_cpu=0)),
        ("vm1", CounterClaim("vmm", 7, guest_cpu=1, host_from=100, host_to=200)),
    ]
    assert read_ks(path) == [("host", (-12, -12)), ("vm1", (3, 4))]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ('{"cpu": 0}', "it has no 'offset'"),
        ('{"cpu": 0, "cntvoff": 1.5}', "its 'cntvoff' is no integer"),
        ('{"cpu": 0, "cntvoff": 1, "offset": -1}', "they are two claims"),
        ('{"k": 5}', "it has no 'machine'"),
        ('{"machine": 7, "k": 5}', "it has no 'machine'"),
        ('{"machine": "host", "k": "5"}', "neither an integer nor"),
        ('{"machine": "host", "k": true}', "neither an integer nor"),
        ('{"machine": "host", "k": [1]}', "neither an integer nor"),
        ('{"machine": "host", "k": [1, 2, 3]}', "neither an integer nor"),
        ('{"machine": "host", "k": [2, 1]}', "the least of its 'k'"),
        ('{"machine": "host", "k": ' + str(1 << 130) + "}", "neither an integer nor"),
        ('{"machine": "host", "k": [0, ' + str(1 << 100) + "]}", "so wide that it tells nothing"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, line: str, why: str) -> None:
    path = written(tmp_path, '{"cpu": 0, "offset": 1}\n' + line)
    with pytest.raises(BadFileError, match="line 2 is no claim") as caught:
        read_claims(path)
        read_ks(path)
    assert why in str(caught.value)
