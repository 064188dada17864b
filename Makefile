# `make demo` and `make test` are the whole set-up: both create the virtual environment first. `make help` lists the rest.
#
# PIP_ARGS goes to every pip, for instance to take CPU-only torch wheels from another index.

VENV ?= .venv
PYTHON ?= python3
PIP_ARGS ?=
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
DATA ?= data
HEADS ?= $(DATA)/embedded.safetensors
LABELLED ?=
SPLIT ?=
PROOF ?= runs/proof
# Processes that run the test files.
TEST_JOBS ?= 2
SEED ?= 0

.DEFAULT_GOAL := help
.PHONY: help demo test test-long test-page test-faults lint docs lock proto weights gate proof proof-smoke proof-rewards proof-motion proof-restore stack-test clean

help: ## List the targets.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: $(VENV)/.server ## Set up .venv, score a real clip and faulty copies, fine-tune a toy for a few steps. KEEP=1 leaves the server running.
	$(BIN)/python -m experiments.demo $(if $(KEEP),--keep)

test: lint ## Set up .venv, lint, type-check and run the tests. PYTEST_ARGS goes to pytest.
	$(BIN)/python -m pytest --numprocesses $(TEST_JOBS) --dist loadfile --no-loadscope-reorder -m "not long and not browser" $(PYTEST_ARGS)

test-long: $(VENV)/.dev ## Run the tests that `make test` leaves out: whole experiments, a few minutes each.
	$(BIN)/python -m pytest --numprocesses $(TEST_JOBS) -m long $(PYTEST_ARGS)

# One process, and no other test beside it: a browser that waits for a core can stall.
test-page: $(VENV)/.dev ## Test the page in Chromium, which must be on PATH.
	$(BIN)/python -m pytest -m browser --timeout 300 --timeout-method thread $(PYTEST_ARGS)

test-faults: $(VENV)/.dev ## Kill, stop and flood a server of real processes for a few minutes: it must lose no job.
	$(BIN)/python -m benchmarks.faults --short

lint: $(VENV)/.dev ## Run ruff and mypy.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.dev ## Regenerate the tables of settings, errors, metrics and formats in docs/.
	$(BIN)/python docs/tables.py
	$(BIN)/python -m tests.format_tables

lock: $(VENV)/.dev ## Write docker/requirements.lock from the versions installed in .venv.
	$(BIN)/python docker/lock.py

# The generated stubs are committed; a test compares them with reward.proto.
proto: $(VENV)/.dev ## Generate the Python stubs of protos/reward.proto.
	$(BIN)/python -m grpc_tools.protoc -I. --plugin=protoc-gen-mypy=$(BIN)/protoc-gen-mypy \
		--python_out=. --grpc_python_out=. --mypy_out=. protos/reward.proto

# All data are public: packages by name, and repositories of GitHub by commit. Without GitHub, the clips of repositories
# are left out. The probe stops a training on data with a shortcut. Without LABELLED nothing is shipped.
REAL = --real $(DATA)/clips --real $(DATA)/scenes \
	$$(test -f $(DATA)/repositories/manifest.jsonl && echo --real $(DATA)/repositories)

weights: $(VENV)/.dev ## Train weights from public data, some hours on two cores; ship them if they pass the gate.
	$(BIN)/python -m experiments.recipe clips --out $(DATA)/clips
	$(BIN)/python -m experiments.recipe repositories --out $(DATA)/repositories
	$(BIN)/python -m experiments.recipe generated --out $(DATA)/generated
	$(BIN)/python -m experiments.recipe scenes --out $(DATA)/scenes --photos $(DATA)/clips/photos --num 60
	$(BIN)/python -m experiments.recipe probe $(REAL)
	$(BIN)/motion-reward pretrain $(REAL) \
		--generated $(DATA)/generated --generated-share 0.15 \
		--steps 3600 --work $(DATA)/pretrain --out $(HEADS)
	$(BIN)/motion-reward reference --real $(DATA)/clips --checkpoint $(HEADS) --out $(HEADS)
	$(MAKE) gate
	cp $(HEADS) reward_server/weights/embedded.safetensors

# The labelled set is your own (docs/formats.md): without LABELLED=DIR, its figures are not measured, so nothing passes.
gate: $(VENV)/.dev ## Judge the discriminators HEADS by sanity, attack and the labelled set LABELLED (or its part SPLIT).
	rm -f $(DATA)/sanity.json $(DATA)/attack.json $(DATA)/labelled.json
	-$(BIN)/motion-reward sanity $(DATA)/clips --checkpoint $(HEADS) --json $(DATA)/sanity.json
	-$(BIN)/motion-reward attack --real $(DATA)/clips --checkpoint $(HEADS) --budget 48 --work $(DATA)/attack \
		--json $(DATA)/attack.json
	$(if $(LABELLED),-$(BIN)/motion-reward evaluate --labelled $(LABELLED) $(if $(SPLIT),--split $(SPLIT)) --matched \
		--checkpoint $(HEADS) --work $(DATA)/labelled --json $(DATA)/labelled.json)
	$(BIN)/python -m experiments.recipe gate --checkpoint $(HEADS) --sanity $(DATA)/sanity.json \
		--attack $(DATA)/attack.json $(if $(LABELLED),--labelled $(DATA)/labelled.json)

# The claims are in experiments/proof/plan.md. A run resumes in $(PROOF).
proof: $(VENV)/.dev ## Train a toy model with SHIFT against a known reward (docs/proof.md): about an hour per SEED.
	$(BIN)/python -m experiments.proof mechanism --out $(PROOF) --seed $(SEED)

proof-smoke: $(VENV)/.dev ## Run the code of `make proof` in minutes, at a size too small for results.
	rm -rf $(PROOF)/smoke-$(SEED)
	$(BIN)/python -m experiments.proof mechanism --out $(PROOF) --seed $(SEED) --size smoke

proof-rewards: $(VENV)/.dev ## Measure whether learned rewards prefer real motion to a toy model's rollouts.
	$(BIN)/python -m experiments.proof rewards --out $(PROOF) --seed $(SEED)

proof-motion: $(VENV)/.dev ## Test the paper's claim on a toy model: does SHIFT restore lost motion?
	$(BIN)/python -m experiments.proof motion --out $(PROOF) $(if $(filter file,$(origin SEED)),,--seed $(SEED))

proof-restore: $(VENV)/.dev ## Run the third plan: does SHIFT bring back the motion of a damped toy? About 90 minutes per SEED.
	$(BIN)/python -m experiments.proof restore --out $(PROOF) --seed $(if $(filter file,$(origin SEED)),200,$(SEED))

# Needs no virtual environment, only Python and Docker with Compose.
stack-test: ## Test the Docker stack: build it, score, scale, kill a worker, train, and remove it again.
	PIP_ARGS="$(PIP_ARGS)" $(PYTHON) docker/stack_test.py $(if $(KEEP),--keep)

$(VENV)/.server: pyproject.toml
	@echo "[1/2] Creating $(VENV) with $(PYTHON) ..."
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --upgrade pip
	@echo "[2/2] Installing the server and the trainer into $(VENV). Torch is large: this takes 2 to 15 minutes."
	$(PIP) install --progress-bar on $(PIP_ARGS) -e '.[server,trainer]'
	touch $@

$(VENV)/.dev: $(VENV)/.server
	@echo "Installing the tools for development into $(VENV): about a minute ..."
	$(PIP) install --progress-bar on $(PIP_ARGS) -e '.[server,trainer,dev]'
	touch $@

clean: ## Remove .venv and what was built.
	rm -rf $(VENV) build *.egg-info
