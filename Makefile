# make setup | test | demo | results | constraints | clean.  Another interpreter: make PYTHON=/path/to/python3.11 test
# NEWEST=1 takes the newest versions that pyproject allows, in an environment of its own.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv$(if $(NEWEST),-newest)
BIN := $(VENV)/bin
STAMP := $(VENV)/.made-from-pyproject
VERSIONS := $(if $(NEWEST),--upgrade --upgrade-strategy eager,--constraint constraints.txt)
TORCH := $(shell grep -oE '"torch[^"]*"' pyproject.toml)
PIP := $(BIN)/pip install --disable-pip-version-check $(VERSIONS)

.PHONY: setup test demo results constraints clean newest
.NOTPARALLEL:

setup: $(STAMP)

# torch first and alone: it is the one large download, and a failure there is told apart.
$(STAMP): pyproject.toml constraints.txt $(if $(NEWEST),newest)
	@[ -n "$(PYTHON)" ] && "$(PYTHON)" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null || \
		{ echo "setup: needs Python 3.11 to 3.13: apt-get install python3.11, or make PYTHON=/path/to/python3.11"; exit 1; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "setup: this Python cannot make environments: apt-get install python3.11-venv"; exit 1; }
	@echo "setup: environment in $(VENV)"
	@"$(PYTHON)" -m venv $(VENV)
	@echo "setup: torch (a large download the first time)"
	@$(PIP) $(TORCH)
	@echo "setup: autotelic and what it needs"
	@$(PIP) -e '.[dev]'
	@ldconfig -p 2>/dev/null | grep -q libOSMesa || [ "$$(uname)" != Linux ] || \
		echo "setup: without libOSMesa there are no videos of robots: apt-get install libosmesa6"
	@touch $(STAMP)
	@echo "setup: done"

# pytest runs last, so that its summary is the last line.
test: setup
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo --no-cache
	@$(BIN)/pytest -n auto --maxprocesses 4 --dist loadfile

demo: setup
	@$(BIN)/autotelic run vla/evolve_vla --output-dir runs/demo-$$(date +%Y%m%d-%H%M%S)
	@echo "more: source $(BIN)/activate, then autotelic list"

# The tables of docs/results.md, from the JSON in benchmarks/.
results: setup
	@$(BIN)/python benchmarks/results.py

# Exact versions for everybody, resolved anew; then `make test`, and commit the file.
constraints:
	@"$(PYTHON)" .ci/constraints.py

clean:
	rm -rf .venv .venv-newest build dist src/autotelic.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -prune -exec rm -rf {} +
