# make setup | test | demo | clean.  Another interpreter: make PYTHON=/path/to/python3.11 test
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
STAMP := .venv/.made-from-pyproject
TORCH := torch==2.14.1 torchvision==0.29.1

.PHONY: setup test demo clean
.NOTPARALLEL:

setup: $(STAMP)

# torch first and alone: it is the one large download, and a failure there is told apart.
$(STAMP): pyproject.toml
	@[ -n "$(PYTHON)" ] && "$(PYTHON)" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null || \
		{ echo "setup: needs Python 3.11 to 3.13: apt-get install python3.11, or make PYTHON=/path/to/python3.11"; exit 1; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "setup: this Python cannot make environments: apt-get install python3.11-venv"; exit 1; }
	@echo "setup: environment in .venv"
	@"$(PYTHON)" -m venv .venv
	@echo "setup: $(TORCH) (a large download the first time)"
	@$(BIN)/pip install -qq --disable-pip-version-check $(TORCH)
	@echo "setup: autotelic and what it needs"
	@$(BIN)/pip install -qq --disable-pip-version-check -e '.[dev]'
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
	@$(BIN)/pytest

demo: setup
	@$(BIN)/autotelic run vla/evolve_vla --output-dir runs/demo-$$(date +%Y%m%d-%H%M%S)

clean:
	rm -rf .venv build dist src/autotelic.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -prune -exec rm -rf {} +
