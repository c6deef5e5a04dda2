"""Simulates compiled variants, or writes the report: see the package's docstring."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tools.hivm.attention import Launch, errors
from tools.hivm.cases import case_of, compiled


def run(folder: Path, only: str) -> int:
    """One line per variant; 1 where one of them isn't clean and right."""
    failed = 0
    for name, (module, chosen) in compiled(folder).items():
        if only not in name:
            continue
        launch = Launch(module, case_of(chosen))
        found = launch.run()
        off = errors(launch)
        good = found.clean and off.within
        failed |= not good
        print(
            f"{name}: {'right' if off.within else 'WRONG'}, error {off.out:.1e} of "
            f"{off.out_budget:.1e}; {len(found.hazards)} hazards; "
            f"deadlock: {found.deadlock or 'none'}; {sum(found.syncs.values())} syncs; "
            f"{round(found.cycles)} cycles (modelled)"
        )
        for text in [*map(str, found.hazards[:5]), *found.problems[:5]]:
            print("   ", text)
    return failed


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.hivm", description=__doc__)
    parser.add_argument("what", choices=("run", "report"))
    parser.add_argument("folder", type=Path, help="where compile_tiled.py wrote")
    parser.add_argument("--only", default="", help="part of a variant's name")
    given = parser.parse_args()
    if not list(given.folder.glob("*/module.hivm.opt.mlir")):
        parser.error(
            f"no */module.hivm.opt.mlir in {given.folder}: run tools/ascend/compile_tiled.py"
        )
    if given.what == "run":
        return run(given.folder, given.only)
    from tools.hivm.report import write

    write(given.folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
