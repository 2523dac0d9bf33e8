# make demo: the whole job on data that it makes itself.  make test: the tests.  make check: style, types, imports, docs.
# make gpu-check: whether all is right and fast on this machine's GPU, in ten minutes.
# make screenshots: the page in a browser.  make gif: README's moving picture.  make docs: the documentation as a site.  make newest: the tests on the newest versions that are allowed.
PYTHON ?= python3
BIN := .venv/bin

# Threads that wait sleep instead of spinning: on a machine that others use too, training is 2 to 4 times as fast.
export OMP_WAIT_POLICY ?= PASSIVE

NEWEST := .venv-newest

.PHONY: demo gpu-check test check check-style check-types check-shapes docs newest newest-again format clean screenshots gif

.venv/core: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -q -e . -c constraints.txt
	touch $@

.venv/dev: .venv/core
	$(BIN)/python -m pip install --disable-pip-version-check -q -e ".[dev,vlm,export]" -c constraints.txt
	touch $@

demo: .venv/core
	$(BIN)/kinescan demo --output runs/demo

# Needs a CUDA device, and a torch built for it.
gpu-check: .venv/core
	$(BIN)/kinescan doctor --gpu-check

# Tests run in a process for each core, up to 8, and all tests of a file in the same one. TEST_PROCESSES=0: one after another.
TEST_PROCESSES ?= auto
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TEST_PROCESSES) --maxprocesses 8 --dist loadfile

test: .venv/dev
	$(PYTEST)

# Its parts may run at once: make -j2 check.
check: check-style check-types check-shapes docs

check-style: .venv/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/codespell

check-types: .venv/dev
	$(BIN)/mypy

# Shape annotations, checked at run time; and the code in README and docs.
check-shapes: .venv/dev
	KINESCAN_CHECK_SHAPES=1 $(PYTEST) tests/ops tests/layers tests/models -q -m "not bad_input and not compile and not slow"
	$(BIN)/python -m pytest tests/test_docs.py -q

# The page as a browser shows it, each state as a picture in build/screenshots, and docs/page.png; needs chromium.
screenshots: .venv/dev
	KINESCAN_SCREENSHOTS=build/screenshots $(BIN)/python -m pytest -q tests/web/test_browser.py
	cp build/screenshots/page_readme.png docs/page.png

# A stream of a made video with its events drawn in: docs/stream.gif.
gif: .venv/core
	$(BIN)/python .ci/pictures.py docs/stream.gif

# The pages of docs/ as a site in build/site; a link that leads nowhere is an error.
docs: .venv/dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# Every test on the newest versions that the bounds of pyproject.toml allow. The result is a table in docs/versions.md;
# make newest-again PARTS="cli data" runs only these folders of tests once more.
newest:
	$(PYTHON) -m venv --clear $(NEWEST)
	$(NEWEST)/bin/python -m pip install --disable-pip-version-check -q -e ".[dev,vlm,export]"
	$(MAKE) newest-again

newest-again:
	OMP_NUM_THREADS=1 TEST_PROCESSES=$(TEST_PROCESSES) $(NEWEST)/bin/python .ci/newest.py $(PARTS)

format: .venv/dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv .venv-newest runs build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
