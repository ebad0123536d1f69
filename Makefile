## run     install the light dependencies into .venv and serve on 127.0.0.1:8000 (PORT=N, ARGS='...')
## test    everything, on real engines: installs what it needs, vLLM for CPU included
## check   ruff, mypy --strict, import-linter, hadolint
## demo    a pod dies and comes back while the philosophers are asked
## chaos   every fault against every way to ask, and a scorecard (ARGS='--only stall', ARGS=--help)
## chaos-engines   the same on real engines: they die, freeze and return (ARGS='--positions 2 --minutes 1')
## bench   the benchmarks; ARGS=--write puts the results into docs/benchmarks.md
## models  train the tiny models of the tests again (embedded: the CPU model of the package, 15 minutes)
## engine  install vLLM into .venv-engine (ENGINE=vllm==0.32.0 on a GPU)
## image-*   a step of the Dockerfile without Docker: image-venv, image-finish, image-weights (ARGS as there)
## lock    resolve the lock files again (needs uv)
PYTHON ?= python3
BIN = .venv/bin
INSTALL = -m pip --disable-pip-version-check install --quiet
COMPILE = uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
	--extra serve --extra local pyproject.toml
.PHONY: help run test check demo chaos chaos-engines bench models embedded engine lock
help: ; @sed -n 's/^## //p' Makefile
run: .venv/.light ; @$(BIN)/sive serve $(ARGS)
test: .venv/.test .venv-engine/.ready
	tests/install_callers.sh && $(BIN)/python -m pytest $(ARGS)
check: .venv/.test
	$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/mypy && $(BIN)/lint-imports && $(BIN)/hadolint Dockerfile
demo: .venv/.light .venv-engine/.ready ; @$(BIN)/python serve/demo.py
chaos: .venv/.test ; @$(BIN)/python -m tests.chaos $(ARGS)
chaos-engines: .venv/.test .venv-engine/.ready ; @$(BIN)/python -m tests.chaos_engines $(ARGS)
bench: .venv/.test .venv-torch/.ready .venv-litellm/.ready ; @$(BIN)/python -m tests.bench $(ARGS)
models: .venv-torch/.ready ; .venv-torch/bin/python lora_adapters/training/tiny.py --out tests/data/tiny
embedded: .venv-torch/.ready ; .venv-torch/bin/python lora_adapters/training/embedded.py
engine: .venv-engine/.ready
image-%: ; @serve/image/$*.sh $(ARGS)
lock:
	$(COMPILE) -o serve/requirements.lock
	$(COMPILE) --extra adapters -c serve/requirements.lock -o runpod/requirements.lock
	$(COMPILE) --extra adapters --group test --group check -c runpod/requirements.lock -o tests/requirements.lock

.venv/.light: serve/requirements.lock pyproject.toml
	@tests/system.sh $(PYTHON)
	$(PYTHON) -m venv .venv
	$(BIN)/python $(INSTALL) --require-hashes -r serve/requirements.lock
	$(BIN)/python $(INSTALL) --no-deps --editable . && touch $@
.venv/.test: .venv/.light tests/requirements.lock
	$(BIN)/python $(INSTALL) --require-hashes -r tests/requirements.lock && touch $@
.venv-engine/.ready: serve/install_engine.sh
	@tests/system.sh $(PYTHON)
	serve/install_engine.sh $(PYTHON) .venv-engine $(ENGINE) && touch $@
.venv-torch/.ready: lora_adapters/training/requirements.txt
	$(PYTHON) -m venv .venv-torch && .venv-torch/bin/python $(INSTALL) -r $< && touch $@
.venv-litellm/.ready:
	$(PYTHON) -m venv .venv-litellm && .venv-litellm/bin/python $(INSTALL) 'litellm[proxy]==1.106.2' && touch $@
