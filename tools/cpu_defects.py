"""Seeds defects into the C code of the CPU kernels, one at a time; the tests must catch them.

Each defect replaces one piece of a source file. The changed library takes the place of the
package's own, with one instruction set under test, and the tests of the kernels run until the first
failure. Exit code 1 when fewer than 95 % of the defects are caught.

    python tools/cpu_defects.py [NAME ...]
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from portattn.backends.cpu import build

ROOT = Path(__file__).resolve().parent.parent
TESTS = ROOT / "tests" / "backends" / "cpu"
ISA = "avx2" if build._X86 and os.uname().machine in ("x86_64", "amd64") else "neon"
GOAL = 0.95
_TIMEOUT_SECONDS = 240

RUN = """
import sys
from pathlib import Path
from portattn.backends.cpu import build, library
build.SOURCES = Path(sys.argv[2])
folder = Path(sys.argv[1])
library._package_folder = lambda: folder
assert library.state().path is not None, library.state().reason
import pytest
sys.exit(pytest.main(sys.argv[3:]))
"""


@dataclass(frozen=True)
class Defect:
    """One wrong line; `tests` chooses those that look at its file."""

    name: str
    file: str
    right: str
    wrong: str
    tests: str = f"test_decode and {ISA} or test_pool"


_TILES = f"test_tiles and {ISA} and (causal or everything or varlen or dropout or pages)"

DEFECTS = (
    Defect(
        "scale missing",
        "decode.c",
        "(plain ? f->softmax_scale : 1.0) * LOG2_E",
        "(plain ? 1.0 : 1.0) * LOG2_E",
    ),
    Defect("scale in the wrong base", "decode.c", ": 1.0) * LOG2_E)", ": 1.0) * 1.0)"),
    Defect(
        "window off by one",
        "visible.h",
        "keys : place + w->f->right + 1;",
        "keys : place + w->f->right;",
    ),
    Defect(
        "top-left alignment",
        "visible.h",
        "place = i + keys - w->sequence->seqlen_q;",
        "place = i;",
    ),
    Defect(
        "partial results not rescaled",
        "decode.c",
        "const double weight = part_top == base ? 1.0 : exp2(part_top - base);",
        "const double weight = 1.0;",
    ),
    Defect(
        "the rows of two streams read as they lie",
        "decode.c",
        "found[x] + place_of(c, n), GRAIN",
        "found[x] + n, GRAIN",
    ),
    Defect(
        "rows behind two streams read from the front",
        "decode.c",
        "memcpy(to + 2 * c->half, found[x] + 2 * c->half,",
        "memcpy(to + 2 * c->half, found[x],",
    ),
    Defect(
        "sum of a chunk not rescaled",
        "decode.c",
        "sum += weight * from->sum[x * stride + r];",
        "sum += from->sum[x * stride + r];",
    ),
    Defect(
        "wrong kv head",
        "visible.h",
        "return w->kv_head * w->group + (w->first + lane) % w->group;",
        "return (w->first + lane) % w->group * (w->f->kv_heads) + w->kv_head;",
    ),
    Defect(
        "32-bit index of a key",
        "keys.h",
        "*k = s->k + j * f->k_row + head * f->k_head;",
        "*k = s->k + (int32_t)(j * f->k_row) + head * f->k_head;",
        f"test_tiles and {ISA} and further",
    ),
    Defect(
        "32-bit index of a key within a run",
        "decode.c",
        "key + i * f->k_row * size;",
        "key + (int32_t)(i * f->k_row * size);",
    ),
    Defect(
        "32-bit index of a value",
        "keys.h",
        "*v = s->v + j * f->v_row + head * f->v_head;",
        "*v = s->v + (int32_t)(j * f->v_row) + head * f->v_head;",
        f"test_tiles and {ISA} and further",
    ),
    Defect(
        "32-bit index of a value within a run",
        "decode.c",
        "value + i * f->v_row * size;",
        "value + (int32_t)(i * f->v_row * size);",
    ),
    Defect(
        "page of the neighbour",
        "keys.h",
        "f->block_table[b * f->table_row + place / f->page_size]",
        "f->block_table[b * f->table_row + (place + 1) / f->page_size]",
        f"test_tiles and {ISA} and pages",
    ),
    Defect(
        "pages that end where they would without left padding",
        "decode.c",
        "(c->w.sequence->first_key + c->first + j) % f->page_size",
        "(c->first + j) % f->page_size",
    ),
    Defect(
        "last key forgotten",
        "decode.c",
        "    c.count = count;",
        "    c.count = count - (count > 1);",
    ),
    Defect(
        "masked keys weighed",
        "decode.c",
        "if (!mask[j * step]) s[j] = -INFINITY;",
        "if (!mask[j * step]) s[j] = -1.0f;",
    ),
    Defect("bias of -inf visible", "visible.h", "!= -INFINITY;", "!= -1.0f;"),
    Defect(
        "NaN of hidden keys spreads",
        "decode.c",
        "if (hidden && !all_finite(c, to->acc)) add_visible(c, to->acc);",
        "",
    ),
    Defect("sink forgotten in the sum", "decode.c", "if (f->sinks) sum += exp2(sink - base);", ""),
    Defect(
        "softcap before the scale",
        "decode.c",
        "v_mul(v_tanh(v_mul(value, bent)), cap)",
        "v_mul(v_mul(v_tanh(v_mul(value, bent)), cap), scale)",
    ),
    Defect(
        "alibi without its sign",
        "decode.c",
        "? -f->slopes[w->b",
        "? f->slopes[w->b",
    ),
    Defect(
        "alibi of the wrong sequence", "decode.c", "f->slopes[w->b * f->slopes_batch", "f->slopes[0"
    ),
    Defect("left padding ignored", "decode_run.c", "l->first_key ? l->first_key[b] : 0", "0"),
    Defect("row of the cache ignored", "decode_run.c", "l->row ? l->row[b] : b", "b"),
    Defect(
        "bfloat16 lanes in the wrong order",
        "vec.h",
        "return d - inside + inside / 2 + (inside % 2) * VW;",
        "return d;",
    ),
    Defect("exponent one too large", f"vec_{ISA}.h", "_epi32(127)", "_epi32(128)"),
    Defect(
        "merged before all chunks are done",
        "decode_run.c",
        "memory_order_acq_rel) == 1)",
        "memory_order_acq_rel) == s->parts)",
    ),
    Defect("blind rows not 0", "decode.c", "sum == 0.0 ? 1.0 : 1.0 / sum", "1.0 / sum"),
    Defect(
        "a pool that doesn't wait",
        "pool.c",
        "while (atomic_load_explicit(&j->inside, memory_order_acquire)) pthread_cond_wait"
        "(&done, &lock);",
        "",
    ),
    Defect(
        "a task run twice",
        "pool.c",
        "if (index >= j->count) return;",
        "if (index > j->count) return;",
    ),
    Defect("a forked child keeps its parent's threads", "pool.c", "    workers = asleep = 0;", ""),
    Defect(
        "workers that never sleep",
        "pool.c",
        "pthread_cond_wait(&work, &lock);",
        "pthread_mutex_unlock(&lock), pthread_mutex_lock(&lock);",
    ),
    Defect(
        "tiles: no rescale between tiles of keys",
        "softmax.h",
        "vf decay = v_exp2(v_sub(before, base));",
        "vf decay = v_set1(1.0f);",
        _TILES,
    ),
    Defect(
        "tiles: scale missing",
        "scores.h",
        "v_store(s + at, v_mul(value, scale));",
        "v_store(s + at, value);",
        _TILES + " or test_tiles and scale",
    ),
    Defect(
        "tiles: a round of Philox less",
        "scores.h",
        "round = 2; round < 9; round++",
        "round = 2; round < 8; round++",
        _TILES,
    ),
    Defect(
        "tiles: odd lanes keep what even ones do",
        "scores.h",
        "u_join(even, odd)",
        "u_join(even, even)",
        _TILES,
    ),
    Defect(
        "tiles: the bias's gradient is that of the product",
        "backward.h",
        "v_select_lt(p, smallest, zero, ds)",
        "v_select_lt(p, smallest, zero, du)",
        f"test_tiles and {ISA} and bias",
    ),
    Defect(
        "tiles: the bias's gradient at the tile's first key",
        "backward.h",
        "(first_key + from) * step;",
        "first_key * step;",
        f"test_tiles and {ISA} and bias",
    ),
    Defect(
        "tiles: the sink's gradient without that of lse",
        "backward.h",
        "(a->grad_lse ? a->grad_lse[at] : 0);",
        "0.0;",
        f"test_tiles and {ISA} and (sinks or everything or varlen)",
    ),
)


def main() -> int:
    """Try the defects named, or all; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="only these defects")
    names = parser.parse_args().names
    for defect in DEFECTS:
        changed(defect)
    chosen = [defect for defect in DEFECTS if not names or defect.name in names]
    with tempfile.TemporaryDirectory(prefix="portattn-defects-") as name:
        folder = Path(name)
        right = Defect("no defect", "decode.c", "acc = p v", "acc = p v", f"{ISA} or test_pool")
        if caught(right, folder, ["test_decode.py", "test_pool.py"]):
            print("the tests fail without a defect", file=sys.stderr)
            return 1
        missed = [defect.name for defect in chosen if not tell(defect, folder)]
    share = 1 - len(missed) / len(chosen)
    print(f"{len(chosen) - len(missed)} of {len(chosen)} defects caught")
    return 0 if share >= GOAL else 1


def tell(defect: Defect, folder: Path) -> bool:
    """Whether a defect was caught; prints it."""
    found = caught(defect, folder, ["test_decode.py", "test_pool.py", "test_tiles.py"])
    print(f"{'caught' if found else 'MISSED'}  {defect.name}", flush=True)
    return found


def changed(defect: Defect) -> str:
    """The defect's file with it. Raises LookupError when the right line isn't there once."""
    text = (build.SOURCES / defect.file).read_text(encoding="utf-8")
    if text.count(defect.right) != 1:
        raise LookupError(f"{defect.name}: {defect.file} has {defect.right!r} not exactly once")
    return text.replace(defect.right, defect.wrong)


def caught(defect: Defect, folder: Path, files: Sequence[str]) -> bool:
    """Whether a test fails with the defect."""
    sources = folder / "csrc"
    shutil.rmtree(sources, ignore_errors=True)
    shutil.copytree(build.SOURCES, sources)
    (sources / defect.file).write_text(changed(defect), encoding="utf-8")
    library = folder / "library"
    # One optimisation level lower compiles in half the time.
    program = (
        "import sys; from pathlib import Path; from portattn.backends.cpu import build; "
        "build.SOURCES = Path(sys.argv[1]); build.build(Path(sys.argv[2]), flags=['-O1'])"
    )
    subprocess.run([sys.executable, "-c", program, str(sources), str(library)], check=True)
    paths = [str(TESTS / name) for name in files]
    command = [sys.executable, "-c", RUN, str(library), str(sources), "-q", "-x"]
    command += ["-p", "no:cacheprovider", "-k", defect.tests, *paths]
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, timeout=_TIMEOUT_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return True
    # 1 is a failed test, below 0 a crash; any other code is a run that tested nothing.
    if done.returncode not in (0, 1) and done.returncode > 0:
        raise RuntimeError(done.stdout.decode())
    return done.returncode != 0


if __name__ == "__main__":
    sys.exit(main())
