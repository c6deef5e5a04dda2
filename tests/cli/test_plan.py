"""`portattn plan`: shares and times without running anything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

H100 = ("--profile", "nvidia-h100", "--host-gbs", "90", "--link-gbs", "51", "--host-gib", "110")


def test_says_what_goes_where_and_how_long_it_takes(run: Any, run_json: Any) -> None:
    done = run("plan", "--context", "1M", *H100)
    assert done.exit_code == 0
    for word in ("on the device", "by the CPU", "streamed", "modelled", "longest sequence"):
        assert word in done.stdout
    found = run_json("plan", "--context", "1M", *H100)
    assert abs(sum(found["shares"].values()) - 1) < 1e-9
    assert found["context"] == 2**20 < found["max_length"]


def test_what_does_not_fit_is_said(run: Any) -> None:
    done = run("plan", "--model", "llama-3-70b", "--context", "1M", *H100)
    assert done.exit_code == 0 and "weights alone" in done.stdout


def test_reads_a_folders_config(run_json: Any, run: Any, tmp_path: Path) -> None:
    config = {"num_attention_heads": 8, "num_hidden_layers": 3, "hidden_size": 64}
    config |= {"layer_types": ["full_attention", "sliding_attention", "full_attention"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = run_json("plan", "--model", str(tmp_path), "--context", "1024", *H100)
    assert found["kv_gb"] == 2 * 1024 * 8 * (8 + 8) * 2 / 1e9
    assert run("plan", "--model", str(tmp_path / "no")).exit_code == 1
    assert run("plan", "--context", "many").exit_code == 2
