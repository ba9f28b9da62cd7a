# `make demo`, `make example`, `make test` and `make test-all` set up all that they need, below this folder.
#
# The interpreter is the newest of these that runs (pyenv has stand-ins for versions that it does not run), or PYTHON=...
# It is chosen once, when .venv is made: `make clean` first to change it. All versions are those of requirements/, which
# hold JAX 0.10 for Python 3.11, the last JAX for it, and the newest JAX for later ones.
#
# Only `make test-all` installs PyTorch: on Linux the package index has it for CUDA only, several GB. Without PyTorch, the
# tests that compare with it skip.
SUITABLE := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))
ifndef PYTHON
PYTHON := $(shell for python in python3.13 python3.12 python3.11 python3; do \
	$$python -c '$(SUITABLE)' 2>/dev/null && echo $$python && break; done)
endif
BIN := .venv/bin
GGUF := .cache/models/SmolLM2-135M-Instruct.Q4_1.gguf
LOCK := import sys; print('requirements/lock-' + ('3.13' if sys.version_info >= (3, 12) else '3.11') + '.txt')
INSTALL = $(BIN)/pip install -q --disable-pip-version-check -c "$$($(BIN)/python -c "$(LOCK)")"
PYTEST := HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder --durations=15

.PHONY: demo example test test-all lint clean

demo: .venv/endpoint $(GGUF)
	PATH="$(CURDIR)/$(BIN):$$PATH" GGUF=$(GGUF) bash launch/demo.sh

# Forty made-up conversations and recorded answers of a teacher (examples/README.md).
example: .venv/endpoint $(GGUF)
	PATH="$(CURDIR)/$(BIN):$$PATH" GGUF=$(GGUF) bash launch/example.sh

# All but the slow tests (tests/conftest.py lists them).
test: .venv/test lint $(GGUF)
	RLHI_SMOLLM2_GGUF=$(CURDIR)/$(GGUF) $(PYTEST) -m 'not slow'

# The same tests, with those that compare with PyTorch, and then the slow ones.
test-all: .venv/parity $(GGUF)
	$(MAKE) test
	RLHI_SMOLLM2_GGUF=$(CURDIR)/$(GGUF) $(PYTEST) -m slow

lint: .venv/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Other models are fetched only when asked for: `python launch/models.py --help` lists them.
$(GGUF): | .venv/base
	$(BIN)/python launch/models.py SmolLM2-135M-Instruct

$(BIN)/pip:
	@test -n "$(PYTHON)" || { echo 'No Python of 3.11 or later with venv was found: install one, or name it with PYTHON=' >&2; exit 1; }
	$(PYTHON) -m venv .venv

.venv/base: setup.py $(wildcard requirements/*.txt) | $(BIN)/pip
	$(INSTALL) -e .
	touch $@

.venv/endpoint: .venv/base
	$(INSTALL) -e '.[endpoint]'
	touch $@

.venv/test: .venv/base
	$(INSTALL) -e '.[test]'
	touch $@

.venv/parity: .venv/test
	$(INSTALL) -e '.[test,parity]'
	touch $@

clean:
	rm -rf .venv .cache runs
