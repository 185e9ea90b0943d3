# Two commands do everything: `make demo` runs the main job on real data, `make test` the checks.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
BENCHMARKS = $(addprefix bench-,training clicks iteration hyperparameters soak scale overhead search warm_start history ingest verdict batch serve embed stranger)

.PHONY: demo up test test-faults quick lint clean $(BENCHMARKS)

demo: $(VENV)/.demo
	$(BIN)/embedding-studio demo $(ARGS)

up: $(VENV)/.demo
	$(BIN)/embedding-studio up

# One thread a process: two processes of two threads on two cores mostly wait for each other.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

# Every step's crash, every kind of outage, then ES_FAULT_MINUTES (10) of random ones from ES_FAULT_SEED, and
# some in ES_FAULT_TASKS (1) tasks of the default method.
test-faults: $(VENV)/.test
	$(BIN)/python -m pytest -m faults -s tests/faults tests/executors $(ARGS)

# The inner loop, on two cores and, where there is one, on a disk in memory: `slow` tests are left out, but of
# whole iterations, which are slow, the few that break first.
quick: $(VENV)/.test
	TMPDIR=$(firstword $(wildcard /dev/shm) /tmp) OMP_NUM_THREADS=1 \
		$(BIN)/python -m pytest -m "not (slow or faults) or quick" -n 2 --dist worksteal

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Ratios and shares of time: on a machine that does nothing else. docs/training.md has the results.
$(BENCHMARKS): bench-%: $(VENV)/.bench
	$(BIN)/python -m benchmarks.$* $(ARGS)

clean:
	rm -rf $(VENV) build *.egg-info

# An extra each, so that running the product installs nothing that only its tests need.
$(VENV)/.%: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[$*]'
	touch $@
