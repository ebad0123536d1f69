# make run | test | check | demo | bench | models      (make help says what each does)
PYTHON ?= python3
BIN = .venv/bin
PIP = -m pip --disable-pip-version-check install --quiet

.PHONY: help run test check demo bench models engine lock clean

help:
	@echo "run     install the light dependencies into .venv and serve on 127.0.0.1:8000 (PORT=N, ARGS='...')"
	@echo "test    everything, on real engines: installs what it needs, vLLM for CPU included"
	@echo "check   ruff, mypy --strict, import-linter"
	@echo "demo    a pod dies and comes back while the philosophers are asked"
	@echo "bench   the benchmarks; results belong into docs/benchmarks.md"
	@echo "models  train the tiny models of the tests and the embedded CPU model again"
	@echo "engine  install vLLM into .venv-engine (ENGINE=vllm==0.32.0 on a GPU)"

run: .venv/.light
	@$(BIN)/sive serve $(ARGS)

test: .venv/.test .venv-engine/.ready
	$(BIN)/python -m pytest $(ARGS)

check: .venv/.test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

demo: .venv/.light .venv-engine/.ready
	@$(BIN)/python serve/demo.py

bench: .venv/.test .venv-torch/.ready
	@$(BIN)/python -m tests.bench $(ARGS)

models: .venv-torch/.ready
	.venv-torch/bin/python lora_adapters/training/tiny.py --out tests/data/tiny
	.venv-torch/bin/python lora_adapters/training/embedded.py

engine: .venv-engine/.ready

lock:
	uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --extra serve --extra local pyproject.toml -o serve/requirements.lock
	uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --extra serve --extra local --group test --group check pyproject.toml -c serve/requirements.lock -o tests/requirements.lock

clean:
	rm -rf .venv .venv-engine .venv-torch

.venv/.light: serve/requirements.lock pyproject.toml
	@tests/system.sh $(PYTHON)
	$(PYTHON) -m venv .venv
	$(BIN)/python $(PIP) --require-hashes -r serve/requirements.lock
	$(BIN)/python $(PIP) --no-deps --editable .
	@touch $@

.venv/.test: .venv/.light tests/requirements.lock
	$(BIN)/python $(PIP) --require-hashes -r tests/requirements.lock
	@touch $@

.venv-engine/.ready: serve/install_engine.sh
	@tests/system.sh $(PYTHON)
	serve/install_engine.sh $(PYTHON) .venv-engine $(ENGINE)
	@touch $@

.venv-torch/.ready: lora_adapters/training/requirements.txt
	$(PYTHON) -m venv .venv-torch
	.venv-torch/bin/python $(PIP) -r $<
	@touch $@
