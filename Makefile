# make demo: the whole job on data that it makes itself.  make test: the tests.  make check: style, types, imports, docs.
PYTHON ?= python3
BIN := .venv/bin

# Threads that wait sleep instead of spinning: on a machine that others use too, training is 2 to 4 times as fast.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: demo test check format clean

.venv/core: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -q -e . -c constraints.txt
	touch $@

.venv/dev: .venv/core
	$(BIN)/python -m pip install --disable-pip-version-check -q -e ".[dev,vlm,export]" -c constraints.txt
	touch $@

demo: .venv/core
	$(BIN)/kinescan demo --output runs/demo

test: .venv/dev
	$(BIN)/python -m pytest

check: .venv/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell
	KINESCAN_CHECK_SHAPES=1 $(BIN)/python -m pytest tests/ops tests/layers tests/models -q -m "not bad_input and not compile and not slow"
	$(BIN)/python -m pytest tests/test_docs.py -q

format: .venv/dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv runs build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
