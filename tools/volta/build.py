"""Compile kernels to PTX for compute_70, for machines whose NVRTC has forgotten it.

    PORTATTN_CUDA12=FOLDER python -m tools.volta.build OUT          the common variants
    PORTATTN_CUDA12=FOLDER python -m tools.volta.build OUT --tests  all that the tests launch

PORTATTN_VOLTA_PTX=OUT then makes the backend load them.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from portattn.backends.volta.variants import Variant
from tools.volta import nvrtc, sets


def build(variants: Iterable[Variant], out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)

    def one(variant: Variant) -> None:
        path = out / variant.file_name
        if not path.exists():
            path.write_bytes(nvrtc.ptx(variant.source, "compute_70"))

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(one, variants))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--tests", action="store_true", help="all that the tests launch")
    options = parser.parse_args()
    variants = sets.common(turing=False)
    if options.tests:
        variants |= sets.of_tests(turing=False)
    build(variants, options.out)
    size = sum(path.stat().st_size for path in options.out.glob("*.ptx")) / 2**20
    print(f"{len(variants)} kernels, {size:.1f} MiB in {options.out}")


if __name__ == "__main__":
    main()
