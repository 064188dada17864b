# Set-up and the two everyday commands: `make demo` and `make test`. Everything lives in $(VENV).
# PIP_ARGS goes to pip, for instance to take CPU-only torch wheels from an index of your choice.

VENV ?= .venv
PYTHON ?= python3
PIP_ARGS ?=
BIN := $(VENV)/bin
DATA ?= data
PROOF ?= runs/proof
# Processes that share out the test files.
TEST_JOBS ?= 2
SEED ?= 0

.PHONY: demo test stack-test lint weights proof proof-smoke proof-rewards proof-motion proto clean

demo: $(VENV)/.server
	$(BIN)/python -m experiments.demo $(if $(KEEP),--keep)

test: lint
	$(BIN)/python -m pytest --numprocesses $(TEST_JOBS) --dist loadfile $(PYTEST_ARGS)

# The stack of compose.yaml on a real Docker engine: no venv, only Python and Docker with Compose.
stack-test:
	PIP_ARGS="$(PIP_ARGS)" $(PYTHON) docker/stack_test.py $(if $(KEEP),--keep)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The shipped weights, from data that anyone can get by package name. About two hours on two cores.
weights: $(VENV)/.dev
	$(BIN)/python -m experiments.recipe clips --out $(DATA)/clips
	$(BIN)/python -m experiments.recipe stills --out $(DATA)/stills --photos $(DATA)/clips/photos --num 132
	$(BIN)/python -m experiments.recipe scenes --out $(DATA)/scenes --photos $(DATA)/clips/photos --num 120
	$(BIN)/motion-reward pretrain --real $(DATA)/clips --real $(DATA)/stills --real $(DATA)/scenes \
		--steps 7200 --work $(DATA)/pretrain --out reward_server/weights/embedded.safetensors

# SHIFT on a toy base, from scratch: experiments/proof/plan.md says what is claimed, experiments/proof/RESULTS.md what came out.
# It resumes in $(PROOF). The smoke run has the same arms and the same last line, and counts too small to mean anything.
# proof-rewards asks whether learned rewards point the right way (Level 2), proof-motion the paper's question (Level 3).
proof: $(VENV)/.dev
	$(BIN)/python -m experiments.proof mechanism --out $(PROOF) --seed $(SEED)

proof-smoke: $(VENV)/.dev
	rm -rf $(PROOF)/smoke-$(SEED)
	$(BIN)/python -m experiments.proof mechanism --out $(PROOF) --seed $(SEED) --size smoke

proof-rewards: $(VENV)/.dev
	$(BIN)/python -m experiments.proof rewards --out $(PROOF) --seed $(SEED)

proof-motion: $(VENV)/.dev
	$(BIN)/python -m experiments.proof motion --out $(PROOF) $(if $(filter file,$(origin SEED)),,--seed $(SEED))

# The generated stubs are committed; a test holds them to reward.proto.
proto: $(VENV)/.dev
	$(BIN)/python -m grpc_tools.protoc -I. --plugin=protoc-gen-mypy=$(BIN)/protoc-gen-mypy \
		--python_out=. --grpc_python_out=. --mypy_out=. protos/reward.proto

$(VENV)/.server: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet $(PIP_ARGS) -e '.[server,trainer]'
	touch $@

$(VENV)/.dev: $(VENV)/.server
	$(BIN)/pip install --quiet $(PIP_ARGS) -e '.[server,trainer,dev]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
