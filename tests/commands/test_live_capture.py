"""A capture of a real arm64 host, made by `record`: nothing but the folder is named, the truth is the register's."""

from __future__ import annotations

import json
from pathlib import Path

from counterpoint.commands.main import main

CAPTURE = Path(__file__).parent.parent / "data" / "arm64-pause-capture"


def test_a_guest_that_stood_still_is_proved_before_and_after_to_the_tick(capsys):
    truth = json.loads((CAPTURE / "truth.json").read_text())["cntvoff"]

    assert main(["sync", str(CAPTURE), "--json"]) == 0

    (guest,) = json.loads(capsys.readouterr().out)["guests"]
    assert [vcpu["guest_cpu"] for vcpu in guest["vcpus"]] == [0, 1]
    for vcpu in guest["vcpus"]:
        assert [epoch["verdict"] for epoch in vcpu["epochs"]] == ["proved", "proved"]
        assert [epoch["cntvoff"] for epoch in vcpu["epochs"]] == truth
        for epoch, cntvoff in zip(vcpu["epochs"], truth, strict=True):
            low, high = epoch["cntvoff_feasible"]
            assert low <= cntvoff <= high and high - low < 2500
            assert epoch["inside"] == epoch["checked"] > 5000
        # the probe that the recording holds says each value from its own stamp on: neither is refuted elsewhere
        assert [(c["source"], c["verdict"], c["cntvoff"]) for c in vcpu["claims"]] == [
            ("probe:voff", "proved", cntvoff) for cntvoff in truth
        ]
