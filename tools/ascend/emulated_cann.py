"""Builds a host emulation of the part of CANN's C interface that torch-npu needs to be imported.

    python tools/ascend/emulated_cann.py OUT

writes libascendcl.so and the names beside it into OUT. Device memory is host memory, streams do
nothing, and there are no kernels. With OUT in LD_LIBRARY_PATH the real torch-npu registers its
operators with their schemas and meta kernels, which our calls are compared with. It says nothing
about CANN. Keep ASCEND_LAUNCH_BLOCKING=1, or an operator
that isn't there silently leaves its output as it was.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

SYMBOLS = Path(__file__).with_name("cann_symbols.txt")
OTHERS = (
    "libhccl", "libacl_op_compiler", "libge_runner", "libgraph", "libacl_tdt_channel", "libatb",
    "libopapi", "libcust_opapi",
)  # fmt: skip
SOURCE = """
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
static int32_t current = 0;
static int allocate(void **p, size_t n) { return posix_memalign(p, 512, n ? n : 512) != 0; }
static int handle(void **p) { *p = calloc(1, 64); return 0; }
int aclrtGetDeviceCount(uint32_t *n) { *n = 1; return 0; }
int aclrtGetDevice(int32_t *d) { *d = current; return 0; }
int aclrtSetDevice(int32_t d) { current = d; return 0; }
int aclrtMalloc(void **p, size_t n, int policy) { return allocate(p, n); }
int aclrtMallocAlign32(void **p, size_t n, int policy) { return allocate(p, n); }
int aclrtMallocHost(void **p, size_t n) { return allocate(p, n); }
int aclrtFree(void *p) { free(p); return 0; }
int aclrtFreeHost(void *p) { free(p); return 0; }
int aclrtMemcpy(void *d, size_t room, const void *s, size_t n, int kind) {
  memmove(d, s, n); return 0; }
int aclrtMemcpyAsync(void *d, size_t room, const void *s, size_t n, int kind, void *stream) {
  memmove(d, s, n); return 0; }
int aclrtMemset(void *d, size_t room, int v, size_t n) { memset(d, v, n); return 0; }
int aclrtMemsetAsync(void *d, size_t room, int v, size_t n, void *stream) {
  memset(d, v, n); return 0; }
int aclrtGetMemInfo(int kind, size_t *available, size_t *total) {
  *available = (size_t)60 << 30; *total = (size_t)64 << 30; return 0; }
const char *aclrtGetSocName(void) { return "Ascend910B2"; }
int aclrtCreateStream(void **s) { return handle(s); }
int aclrtCreateStreamWithConfig(void **s, uint32_t a, uint32_t b) { return handle(s); }
int aclrtCreateEventExWithFlag(void **e, uint32_t flag) { return handle(e); }
int aclrtCreateEventWithFlag(void **e, uint32_t flag) { return handle(e); }
int aclrtGetCurrentContext(void **c) { static int one; *c = &one; return 0; }
int aclrtEventElapsedTime(float *ms, void *a, void *b) { *ms = 0; return 0; }
int aclrtDeviceCanAccessPeer(int32_t *can, int32_t a, int32_t b) { *can = 0; return 0; }
int aclrtQueryEventStatus(void *e, int *s) { *s = 1; return 0; }
int aclrtQueryEventWaitStatus(void *e, int *s) { *s = 1; return 0; }
int aclrtStreamQuery(void *stream, int *s) { *s = 0; return 0; }
const char *aclGetRecentErrMsg(void) { return "this is a host emulation of CANN"; }
int aclrtSynchronizeStreamWithTimeout(void *s, int32_t t) { return 0; }
int aclrtSynchronizeDevice(void) { return 0; }
int aclrtGetSysParamOpt(int o, int64_t *v) { *v = 0; return 0; }
int aclrtCtxGetSysParamOpt(int o, int64_t *v) { *v = 0; return 0; }
int aclrtSetSysParamOpt(int o, int64_t v) { return 0; }
int aclrtCtxSetSysParamOpt(int o, int64_t v) { return 0; }
int aclopCompileAndExecute(void) { return 500001; }
int aclopCompileAndExecuteV2(void) { return 500001; }
int aclopExecuteV2(void) { return 500001; }
int aclrtDeviceGetBareTgid(int32_t *p) { *p = 1; return 0; }
"""


def main() -> int:
    """Compile into the folder of the command line; returns the exit code."""
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    written = set(re.findall(r"^(?:int|const char \*)\s*\*?(\w+)\(", SOURCE, re.MULTILINE))
    rest = [name for name in SYMBOLS.read_text().split() if name not in written]
    text = SOURCE + "".join(f"long {name}(void) {{ return 0; }}\n" for name in rest)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "cann.c"
        source.write_text(text)
        _library(source, out / "libascendcl.so", [])
        source.write_text("int nothing_here(void) { return 0; }\n")
        beside = [f"-L{out}", "-Wl,--no-as-needed", "-lascendcl", "-Wl,-rpath,$ORIGIN"]
        for name in OTHERS:
            _library(source, out / f"{name}.so", beside)
    return 0


def _library(source: Path, target: Path, more: list[str]) -> None:
    name = f"-Wl,-soname,{target.name}"
    command = ["cc", "-O1", "-w", "-shared", "-fPIC", str(source), "-o", str(target), name, *more]
    subprocess.run(command, check=True)


if __name__ == "__main__":
    sys.exit(main())
