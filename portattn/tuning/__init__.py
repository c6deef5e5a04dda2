"""Measures kernels on the device at hand, and writes what is best into the user's overlay.

from portattn import tuning
from portattn.dispatch import device

report = tuning.tune(device.of(torch.device("cuda")), budget=300)
"""

from __future__ import annotations

from portattn.tuning.calibration import Calibration, calibrate
from portattn.tuning.engine import Report, Step, tune
from portattn.tuning.outcome import Outcome, Standing
from portattn.tuning.targets import Target, usual
from portattn.tuning.warm import Warmed, warm

__all__ = [
    "Calibration",
    "Outcome",
    "Report",
    "Standing",
    "Step",
    "Target",
    "Warmed",
    "calibrate",
    "tune",
    "usual",
    "warm",
]
