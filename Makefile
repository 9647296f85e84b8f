# The torch that CI tests; the package takes torch >= 2.10. This pin lives here and nowhere else.
TORCH  ?= torch==2.13.0
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   ?= .venv
BIN     = $(VENV)/bin

.PHONY: demo test lint bench readme clean

demo: $(VENV)/.installed  ## train on a log whose best possible metrics are known, in minutes
	$(BIN)/seqrec train sasrec --data synthetic --epochs 30 --out runs/demo --overwrite

test: $(VENV)/.installed  ## every test; `make test ARGS="-k config"` for some
	$(BIN)/python -m pytest $(ARGS)

lint: $(VENV)/.installed  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.installed  ## speed and memory beside the peers; `make bench ARGS="--shapes all"`
	$(BIN)/python -m benchmarks.run $(ARGS)

readme: $(VENV)/.installed  ## write the kept results into README.md and docs
	$(BIN)/python tests/seqrec/test_readme.py

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .mypy_cache
	find seqrec_kernels -name '_*.so' -delete

# torch first, with what the build needs beside it: --no-build-isolation then builds the compiled
# parts against this very torch. The stamp follows the files that decide what is installed.
$(VENV)/.installed: pyproject.toml setup.py Makefile $(wildcard csrc/*.cpp csrc/*/*)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "$(TORCH)" "setuptools>=77" pybind11 ninja
	$(BIN)/python -m pip install --quiet --no-build-isolation -e ".[test,plot,dev]"
	touch $@
