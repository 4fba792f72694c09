# make demo        train, reload and draw a small CeiT     make lint        format and static checks
# make test        what CI runs, with the two below        make format      format and sort imports
# make test-fast   the tests that take seconds             make timm-suite  timm's own tests on our models
# make test ARGS='-k leff -x'   a part of the tests        make bench       measure against the originals
# make test-clients   other people's tools on our models, in an environment of its own (ARGS as for make test)
# make test-kernels   kernels executed on a CPU and checked for races, in one of Python 3.12 (ARGS as for make test)

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
CLIENTS := .venv-clients
CLIENTS_INSTALLED := $(CLIENTS)/.installed
KERNELS := .venv-kernels
KERNELS_INSTALLED := $(KERNELS)/.installed
EXECUTION := kernels/tests/execution
TESTS := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup

.PHONY: demo test test-fast test-clients test-kernels lint format timm-suite bench bench-gpu clean

$(INSTALLED): pyproject.toml constraints.txt hatch_build.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip -c constraints.txt
	$(BIN)/python -m pip install --quiet -e '.[test]' -c constraints.txt
	touch $@

demo: $(INSTALLED)
	$(BIN)/timm-extra demo $(ARGS)

ifeq ($(ARGS),)
test: $(INSTALLED) lint
	$(TESTS)
	OMP_NUM_THREADS=1 $(BIN)/python tests/timm_suite/run.py -n 2
	OMP_NUM_THREADS=1 TIMM_SUITE_ACCELERATED=1 $(BIN)/python tests/timm_suite/run.py -n 2
	$(BIN)/python -m benchmarks --quick
else
test: $(INSTALLED)
	$(BIN)/python -m pytest $(ARGS)
endif

test-fast: $(INSTALLED)
	$(TESTS) -m 'not slow'

$(CLIENTS_INSTALLED): pyproject.toml tests/clients/requirements.txt hatch_build.py
	$(PYTHON) -m venv $(CLIENTS)
	$(CLIENTS)/bin/python -m pip install --quiet --upgrade pip -c tests/clients/requirements.txt
	$(CLIENTS)/bin/python -m pip install --quiet -e . -r tests/clients/requirements.txt
	touch $@

test-clients: $(CLIENTS_INSTALLED)
	OMP_NUM_THREADS=1 $(CLIENTS)/bin/python -m pytest -n 2 --dist worksteal tests/clients $(ARGS)

$(KERNELS_INSTALLED): $(EXECUTION)/requirements.txt hatch_build.py
	python=$$($(EXECUTION)/find_python) && "$$python" -m venv --clear $(KERNELS)
	$(KERNELS)/bin/python -m pip install --quiet --upgrade pip -c $(EXECUTION)/requirements.txt
	$(KERNELS)/bin/python -m pip install --quiet --no-compile --no-deps -e . -r $(EXECUTION)/requirements.txt
	touch $@

test-kernels: $(KERNELS_INSTALLED)
	OMP_NUM_THREADS=1 TRITON_INTERPRET=0 PYTHONPATH=kernels/tests $(KERNELS)/bin/python -m pytest -n 2 --dist worksteal \
		-p execution.plugin kernels/tests/test_*.py $(EXECUTION) $(ARGS)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

timm-suite: $(INSTALLED)
	$(BIN)/python tests/timm_suite/run.py $(ARGS)

bench: $(INSTALLED)
	$(BIN)/python -m benchmarks --out output/bench $(ARGS)

clean:
	rm -rf $(VENV) $(CLIENTS) $(KERNELS) build dist output

# on a machine with a GPU: kernel tests, then times beside other libraries, then other tiles
bench-gpu: $(INSTALLED)
	$(BIN)/python -m benchmarks gpu --out benchmarks/results $(ARGS)
