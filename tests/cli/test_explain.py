"""`portattn explain`."""

from __future__ import annotations

import json
from typing import Any

import pytest

from portattn.dispatch import profile as profiles
from portattn.dispatch import registry


def test_names_the_chosen_backend_and_those_it_passed_over(run: Any) -> None:
    result = run("explain", "--device", "cpu", "--alibi", "--sinks", "--dtype", "float32")
    assert result.exit_code == 0
    assert "runs" in result.stdout
    assert "cannot" in result.stdout


def test_json_holds_the_decision(run_json: Any) -> None:
    decision = run_json("explain", "--device", "cpu", "--dtype", "float32", "--seqlen", "64")
    assert decision["backend"] in registry.names()
    assert decision["forced"] is False
    assert decision["config_source"]
    assert decision["candidates"][0] == decision["backend"]


def test_forced_backend_is_the_one_that_runs(run_json: Any) -> None:
    decision = run_json("explain", "--device", "cpu", "--backend", "reference")
    assert decision["backend"] == "reference"
    assert decision["forced"] is True


def test_no_backend_prints_every_reason_and_fails(run: Any) -> None:
    arguments = ("explain", "--device", "cpu", "--backend", "reference", "--head-dim", "100000")
    refused = run(*arguments)
    assert refused.exit_code == 1
    assert "head_dim 100000" in refused.stderr
    document = json.loads(run(*arguments, "--json").stdout)
    assert document["backend"] is None
    assert "head_dim 100000" in " ".join(document["rejected"]["reference"])


@pytest.mark.parametrize("name", profiles.names())
def test_every_profile_can_be_asked_for_by_name(run_json: Any, name: str) -> None:
    decision = run_json("explain", "--profile", name, "--dtype", "float16", "--causal")
    assert decision["profile"] == name


@pytest.mark.parametrize(
    ("flags", "shown"),
    [
        (["--operation", "backward"], "dense backward"),
        (["--operation", "decode", "--seqlen-k", "4096"], "seqlen 1 x 4096"),
        (["--operation", "decode", "--page-size", "16"], "paged"),
        (["--layout", "varlen", "--batch", "3"], "varlen forward, float32, batch 3"),
        (["--heads", "8", "--kv-heads", "2"], "heads 8/2"),
        (["--head-dim", "192", "--head-dim-v", "128"], "head_dim 192/128"),
        (["--causal", "--window", "255,0"], "window"),
        (["--softcap", "30"], "softcap"),
        (["--alibi"], "alibi"),
        (["--sinks"], "sinks"),
        (["--dropout", "0.1"], "dropout"),
        (["--seqlen-q", "5", "--seqlen-k", "9"], "seqlen 5 x 9"),
    ],
)
def test_flags_describe_the_problem(run_json: Any, flags: list[str], shown: str) -> None:
    common = ("explain", "--device", "cpu", "--dtype", "float32", "--backend", "reference")
    assert shown in run_json(*common, *flags)["problem"]


def test_a_device_that_is_not_here_is_explained_from_its_profile(run: Any) -> None:
    told = run("explain", "--device", "ascend910b", "--causal")
    assert told.exit_code == 0
    assert "ascend-910b (huawei ascend910b), profile ascend-910b" in told.stdout
    assert "torch-npu" in told.stdout
    assert run("explain", "--device", "ascend910b", "--profile", "ascend-910b2").exit_code == 2
