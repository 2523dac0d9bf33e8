# make demo: the whole job on data that it makes itself.  make test: the tests.  make check: style, types, imports, docs.
# make screenshots: the page in a browser.  make docs: the documentation as a site.  make newest: the tests on the newest versions of what we depend on.
PYTHON ?= python3
BIN := .venv/bin

# Threads that wait sleep instead of spinning: on a machine that others use too, training is 2 to 4 times as fast.
export OMP_WAIT_POLICY ?= PASSIVE

NEWEST := .venv-newest

.PHONY: demo test check docs newest format clean screenshots

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
	$(MAKE) docs

# The page as a browser shows it, each state as a picture in build/screenshots; needs chromium.
screenshots: .venv/dev
	KINESCAN_SCREENSHOTS=build/screenshots $(BIN)/python -m pytest -q tests/web/test_page.py -k browser

# The pages of docs/ as a site in build/site; a link that leads nowhere is an error.
docs: .venv/dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# The suite on the newest versions that the bounds of pyproject.toml allow. What ran stands in build/newest.txt, what the
# bounds kept out in its last lines: docs/versions.md says what to do with it.
newest:
	$(PYTHON) -m venv --clear $(NEWEST)
	$(NEWEST)/bin/python -m pip install --disable-pip-version-check -q -e ".[dev,vlm,export]"
	mkdir -p build
	$(NEWEST)/bin/python --version > build/newest.txt
	$(NEWEST)/bin/python -m pip freeze --exclude-editable >> build/newest.txt
	$(NEWEST)/bin/python -m pip list --disable-pip-version-check --outdated >> build/newest.txt
	$(NEWEST)/bin/python -m pytest

format: .venv/dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv .venv-newest runs build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
