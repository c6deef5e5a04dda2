"""What the documentation says runs where is what the backends declare."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_support_tables_are_up_to_date() -> None:
    pytest.importorskip("triton", reason="its kernels' limits are a column of the table")
    command = [sys.executable, str(ROOT / "tools" / "support_table.py"), "--check"]
    # What Triton's interpreter can't do isn't what the kernels can't do.
    environment = {name: value for name, value in os.environ.items() if "INTERPRET" not in name}
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=120, env=environment
    )
    assert done.returncode == 0, done.stderr
