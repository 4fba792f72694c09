# make demo   train, reload and draw a small CeiT        make lint        format and static checks
# make test   everything CI runs                         make timm-suite  timm's own tests on our models
# make bench  measure against the peers

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test lint timm-suite bench clean

$(INSTALLED): pyproject.toml constraints.txt hatch_build.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip -c constraints.txt
	$(BIN)/python -m pip install --quiet -e '.[test]' -c constraints.txt
	touch $@

demo: $(INSTALLED)
	$(BIN)/timm-extra demo $(ARGS)

test: $(INSTALLED) lint
	$(BIN)/python -m pytest $(ARGS)
	$(BIN)/python tests/timm_suite/run.py
	$(BIN)/python -m benchmarks --quick

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

timm-suite: $(INSTALLED)
	$(BIN)/python tests/timm_suite/run.py $(ARGS)

bench: $(INSTALLED)
	$(BIN)/python -m benchmarks --out output/bench.json $(ARGS)

clean:
	rm -rf $(VENV) build dist output
