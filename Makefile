# `make` lists the targets. PYTHON names the interpreter that .venv is made with, PORT the dashboard's port.
PYTHON ?= python3
PORT ?= 8501
export PORT

VENV := .venv/bin
PYTEST := $(VENV)/python -m pytest -n 2 --dist loadgroup

.DEFAULT_GOAL := help
.PHONY: help app test check soak lint types imports pytest format example python environment system-packages

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

app: python ## install what is missing and start Plumbline on http://127.0.0.1:8501 (PORT=… to change)
	@exec $(PYTHON) -m scripts.launch

test: lint types imports pytest ## everything: lint, types, import contracts and all tests, browser and PostgreSQL included

check: environment lint types imports ## the fast part: lint, types, import contracts and the quick tests
	$(PYTEST) -q -m "not slow and not browser and not postgres and not gpu and not soak"

soak: environment ## the long runs: thousands of configurations a family against transformers
	$(PYTEST) -m soak --durations=10

format: environment ## bring the code into shape
	$(VENV)/ruff check --fix .
	$(VENV)/ruff format .

example: python ## run the worked example
	@$(PYTHON) -m scripts.environment requirements.txt
	@$(VENV)/python -m scripts.example

lint: environment
	$(VENV)/ruff check .
	$(VENV)/ruff format --check .

types: environment
	$(VENV)/mypy

imports: environment
	$(VENV)/lint-imports

pytest: environment system-packages
	$(PYTEST) --durations=10

environment: python
	@$(PYTHON) -m scripts.environment requirements-dev.txt

system-packages: environment
	@$(VENV)/python -m scripts.system_packages

python:
	@command -v $(PYTHON) >/dev/null 2>&1 || { \
	  echo "Plumbline needs Python 3.11 or newer, and there is no $(PYTHON): install it, or name one, for example 'make app PYTHON=python3.11'." >&2; exit 1; }
