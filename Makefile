# Everything a newcomer needs: `make study`, then `make dashboard`. `make help` lists the rest.
.DEFAULT_GOAL := help
.PHONY: help study test lint format dashboard report constraints clean
.DELETE_ON_ERROR:

PYTHON ?= python3
BIN    := .venv/bin
# An overlay with differences only: `make study STUDY=config/studies/mine.yaml`
STUDY  ?=
CORES  ?= all
SNAKEMAKE = $(BIN)/snakemake --cores $(CORES) --configfile config/config.yaml $(STUDY)

help:                 ## this list
	@grep -hE '^[a-z]+: .*##|^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1\t/' | expand -t 14

$(BIN)/.study: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, and $(PYTHON) is " + sys.version.split()[0])'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(BIN)/.dev: $(BIN)/.study
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

study: $(BIN)/.study  ## run the default study (or STUDY=overlay.yaml) and print its summary
	@$(SNAKEMAKE)
	@cat results/summary.txt

test: $(BIN)/.dev     ## all tests, the tiny study included
	$(BIN)/python -m pytest tests/models -n 2 --dist loadfile  # computes and measures nothing: two at a time
	$(BIN)/python -m pytest tests --ignore tests/models

lint: $(BIN)/.dev     ## ruff, mypy, snakefmt, snakemake --lint
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/snakefmt --check Snakefile workflow
	$(BIN)/snakemake --lint

format: $(BIN)/.dev   ## let ruff and snakefmt rewrite what they can
	$(BIN)/ruff check --fix . ; $(BIN)/ruff format . ; $(BIN)/snakefmt Snakefile workflow

dashboard: $(BIN)/.study  ## serve the dashboard of the last study on 127.0.0.1
	$(BIN)/footprint dashboard

report: $(BIN)/.study ## Snakemake's own report of the last study, with provenance: results/report.html
	@$(SNAKEMAKE) --report results/report.html

constraints:          ## rewrite constraints.txt with what all extras bring, the pins that are there kept
	$(PYTHON) -m venv .venv-all
	.venv-all/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev,bench]"
	.venv-all/bin/python -m pip freeze --exclude-editable | sed -E 's/^(torch==[0-9.]+)\+.*/\1/' > constraints.txt
	rm -rf .venv-all

clean:                ## remove the environment and all results
	rm -rf .venv .snakemake results/*/ results/*.csv results/*.txt results/*.html
