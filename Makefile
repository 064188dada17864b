# `make demo` and `make test` are the whole set-up: both create the virtual environment first. `make help` lists the rest.
#
# PIP_ARGS goes to every pip, for instance to take CPU-only torch wheels from another index.

VENV ?= .venv
PYTHON ?= python3
PIP_ARGS ?=
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
DATA ?= data
PROOF ?= runs/proof
# Processes that run the test files.
TEST_JOBS ?= 2
SEED ?= 0

.DEFAULT_GOAL := help
.PHONY: help demo test test-long lint docs lock proto weights proof proof-smoke proof-rewards proof-motion stack-test clean

help: ## List the targets.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: $(VENV)/.server ## Set up .venv, score a real clip and faulty copies, take a few training steps. KEEP=1 leaves the server running.
	$(BIN)/python -m experiments.demo $(if $(KEEP),--keep)

test: lint ## Set up .venv, lint, type-check and run the tests. PYTEST_ARGS goes to pytest.
	$(BIN)/python -m pytest --numprocesses $(TEST_JOBS) --dist loadfile -m "not long" $(PYTEST_ARGS)

test-long: $(VENV)/.dev ## Run the tests that `make test` leaves out: whole experiments, a few minutes each.
	$(BIN)/python -m pytest --numprocesses $(TEST_JOBS) -m long $(PYTEST_ARGS)

lint: $(VENV)/.dev ## Run ruff and mypy.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.dev ## Regenerate the tables of settings and errors in docs/serving.md.
	$(BIN)/python docs/tables.py

lock: $(VENV)/.dev ## Write docker/requirements.lock from the versions installed in .venv.
	$(BIN)/python docker/lock.py

# The generated stubs are committed; a test compares them with reward.proto.
proto: $(VENV)/.dev ## Generate the Python stubs of protos/reward.proto.
	$(BIN)/python -m grpc_tools.protoc -I. --plugin=protoc-gen-mypy=$(BIN)/protoc-gen-mypy \
		--python_out=. --grpc_python_out=. --mypy_out=. protos/reward.proto

# All data come from packages that anyone can download by name. The probe stops a training on data with a shortcut.
weights: $(VENV)/.dev ## Train the shipped weights from packaged data: about three hours on two cores.
	$(BIN)/python -m experiments.recipe clips --out $(DATA)/clips
	$(BIN)/python -m experiments.recipe scenes --out $(DATA)/scenes --photos $(DATA)/clips/photos --num 120
	$(BIN)/python -m experiments.recipe probe --real $(DATA)/clips --real $(DATA)/scenes
	$(BIN)/motion-reward pretrain --real $(DATA)/clips --real $(DATA)/scenes \
		--steps 3600 --work $(DATA)/pretrain --out reward_server/weights/embedded.safetensors

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
