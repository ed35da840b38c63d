PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
HOST ?= 127.0.0.1
PORT ?= 8000

# tests start hundreds of processes: without what Python keeps of compiled modules, each compiles bitserve's anew
export PYTHONDONTWRITEBYTECODE =

.PHONY: serve test test-faults test-simulated test-targets test-native test-deploy deploy-check lock gpu-test lint bench bench-binary bench-peers samples clean

serve: $(VENV)/.installed
	$(BIN)/bitserve serve --host $(HOST) --port $(PORT)

# three processes for two cores, a file of tests in one of them: most tests wait for something a part of their time.
# In the order of what is named, not by counts of tests, as xdist would: the longest files have few
THREE := -n 3 --dist loadfile --no-loadscope-reorder
test: $(VENV)/.installed-test
	$(BIN)/python -m pytest $(or $(TESTS),$(THREE) tests $(addprefix --ignore tests/,targets gpu plugins/cuda faults simulated deploy store cluster))

# processes that die, disks that are full, clients that leave: with one process, and with front ends, as all HTTP is
test-faults: $(VENV)/.installed-test
	$(BIN)/python -m pytest $(THREE) tests/faults
	BITSERVE_FRONT_ENDS=2 $(BIN)/python -m pytest $(THREE) tests/faults tests/http

# the runtime of GPUs, and all tests of servers with what they can run on a simulated one; but for what asks no engine
test-simulated: $(VENV)/.installed-test
	TESTS_ON_GPU=1 $(BIN)/python -m pytest $(THREE) tests/faults tests/simulated tests/http

test-targets: $(VENV)/.installed-targets
	$(BIN)/python -m pytest $(THREE) tests/targets

# what needs a GPU with units for bits, on one; without, what of it the host can do in its place: the kernels' sources
# run there, in any order of warps. A GPU is for one process: others beside it would be in what is measured
HAS_GPU := $(shell nvidia-smi --list-gpus 2>/dev/null)
gpu-test: $(VENV)/.installed-$(if $(HAS_GPU),gpu,targets)
	$(BIN)/python -m pytest $(if $(HAS_GPU),-rs,$(THREE)) tests/gpu tests/plugins/cuda

# what a server needs beyond one machine: stores, builds as Jobs, manifests, monitoring, the image; as root, with .ci/debian-packages.txt
test-deploy: $(VENV)/.installed-deploy
	$(BIN)/python -m pytest $(THREE) tests/store tests/deploy tests/cluster

# a line for every validator of what is in deploy/
deploy-check: $(VENV)/.installed-deploy
	$(BIN)/python -m deploy.check

# the versions and hashes of all that the images install; needs uv
lock:
	deploy/image/lock.sh

# kernels and operators under AddressSanitizer and UndefinedBehaviorSanitizer; what OpenVINO and Python leak is theirs.
# A report ends the process and is written past Python, so only Python's own output is captured. TBB_ENABLE_SANITIZERS:
# else TBB loads a library in a way that AddressSanitizer refuses
NATIVE_TESTS := $(addprefix tests/plugins/test_,kernels.py operators.py packing.py residuals.py bundles.py thresholds.py binary_layers.py sessions.py)
test-native: $(VENV)/.installed-test
	cmake -S engines/plugins/cpu -B $(VENV)/native -DSANITIZE=ON -DPython_EXECUTABLE=$(abspath $(BIN)/python) >/dev/null
	cmake --build $(VENV)/native -j2 >/dev/null
	LD_PRELOAD="$$(c++ -print-file-name=libasan.so) $$(c++ -print-file-name=libubsan.so)" TBB_ENABLE_SANITIZERS=1 \
		ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 $(BIN)/python -m pytest --capture=sys \
		--extension $(VENV)/native/libbitserve_bnn.plugin $(NATIVE_TESTS)

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tests/tools/file_lengths.py

bench: $(VENV)/.installed-test
	$(BIN)/python -m benchmarks

bench-binary: $(VENV)/.installed-test
	$(BIN)/python -m benchmarks binary binary_resnet18

# other servers beside this one; each is installed into a venv of its own, in the folder that BITSERVE_PEERS_CACHE names
bench-peers: $(VENV)/.installed-test
	$(BIN)/python -m benchmarks peers

samples: $(VENV)/.installed-test
	$(BIN)/pip install --quiet --editable '.[samples]'
	for script in model_repo/*/train.py; do $(BIN)/python $$script || exit 1; done

# pip's own output only where something goes wrong; an editable install, so that only the native kernels need another
$(VENV)/.installed: pyproject.toml $(wildcard engines/plugins/cpu/CMakeLists.txt engines/plugins/cpu/*.cmake engines/plugins/cpu/src/*)
	$(PYTHON) -c 'import sys; sys.exit("bitserve needs Python >= 3.11, this is %s; set PYTHON=..." % sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[test]'
	touch $@

$(VENV)/.installed-targets: $(VENV)/.installed-test
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[test,rtx]'
	touch $@

# to run plans, too; needs a CUDA toolkit, by which PyCUDA is compiled
$(VENV)/.installed-gpu: $(VENV)/.installed-test
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[test,rtx,gpu]'
	touch $@

$(VENV)/.installed-deploy: $(VENV)/.installed-test
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[test,deploy-test]'
	touch $@

# the same three at once, for who runs all suites
$(VENV)/.installed-all: $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[test,rtx,deploy-test]'
	touch $(addprefix $(VENV)/.installed-,test targets deploy) $@

clean:
	rm -rf $(VENV) build *.egg-info
