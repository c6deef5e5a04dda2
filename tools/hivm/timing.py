"""Cycles of an operation from a table of the chip.

Rates are bytes a cycle and core, out of the cost model's configuration that ships with pypto 0.2.0
(A2A3.ini: cube 16 x 16 x 16, vec_calc_size, L2 and L1 rates, 1850 MHz) and the compiler's own
device description (cores, buffer sizes). What no source states is marked `assumed`; the model is
calibrated against published times, and its figures are modelled, not measured.
"""

from __future__ import annotations

from dataclasses import dataclass

from tools.hivm.library import Work


@dataclass(frozen=True)
class Hardware:
    name: str
    megahertz: float
    cubes: int
    # Multiply-adds of a cycle in half types; float32 takes `slow` times as long (assumed).
    cube_macs: int = 16 * 16 * 16
    slow: int = 4
    # Bytes that the vector unit computes in a cycle.
    vector_bytes: int = 256
    l1_to_l0a: int = 512
    l1_to_l0b: int = 256
    l2_read: int = 110
    l2_write: int = 86
    hbm: int = 32
    ub_to_l2: int = 64
    # Cube results that go to the vector units' buffer without global memory; 0 where they can't.
    cube_to_ub: int = 0
    l1_fill: int = 512
    # Assumed, in cycles: to start a vector operation, a transfer, a matrix routine; a scalar
    # operation; a flag inside a core; a semaphore between cores.
    vector_start: int = 20
    transfer_start: int = 200
    cube_start: int = 60
    scalar: float = 1.0
    flag: int = 8
    semaphore: int = 200

    def microseconds(self, cycles: float) -> float:
        return cycles / self.megahertz

    def cycles(self, work: Work) -> float:
        """How long a piece of work holds its pipe."""
        if work.pipe == "V":
            size = work.elements * work.itemsize
            return self.vector_start + work.passes * -(-size // self.vector_bytes)
        if work.pipe == "MTE1":
            m, k, n = work.shape
            size = work.itemsize
            return self.cube_start + m * k * size / self.l1_to_l0a + k * n * size / self.l1_to_l0b
        if work.pipe == "M":
            m, k, n = (-(-extent // 16) * 16 for extent in work.shape)
            slow = self.slow if work.itemsize == 4 else 1
            return self.cube_start + slow * m * k * n / self.cube_macs
        return self.transfer_start + work.bytes / self._rate(work)

    def _rate(self, work: Work) -> float:
        if work.path == "fill L1":
            return self.l1_fill
        if work.path == "UB to GM":
            return self.ub_to_l2
        if work.path == "L0C to GM":
            return self.cube_to_ub or self.l2_write
        if work.path == "GM to UB" and self.cube_to_ub:
            return self.cube_to_ub
        return self.l2_read


ASCEND_910B2 = Hardware("Ascend 910B2", 1850, 24)
# The coupled Da Vinci core, with rates of the values in a public unit test of hicann/ge. The
# compiler has no 910A target: this times the 910B's program with the 910A's path between the units.
ASCEND_910A = Hardware(
    "Ascend 910A", 1000, 32, l2_read=128, l2_write=64, hbm=67, cube_to_ub=512, semaphore=20,
)  # fmt: skip
