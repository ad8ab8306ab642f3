# make reproduce: the whole recipe, one network of each family at smoke scale; make test: the tests.
# Both install once, into .venv.
PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.installed
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export OMP_WAIT_POLICY := PASSIVE
export MLFLOW_DISABLE_TELEMETRY := true

.PHONY: reproduce test lint lock clean
reproduce: $(STAMP)
	snakemake tour
	@echo; cat results/smoke/tables/tour.md; echo
	@echo "The page: results/smoke/tour.html    The runs: mlflow ui    All 34 networks: snakemake"

test: $(STAMP)
	pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

lint: $(STAMP)
	ruff check .
	ruff format --check .
	snakefmt --check Snakefile
	snakemake --lint
	workbench validate
	for scale in smoke lite full; do snakemake --dry-run --quiet --config scale=$$scale || exit 1; done

$(STAMP): pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(not ((3, 11) <= sys.version_info[:2] <= (3, 13)) and "this needs Python 3.11 to 3.13; give one with make PYTHON=...")'
	@echo "Installing into $(VENV), once: about 3.5 GB to download, 7 GB on disk, a few minutes."
	@$(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check uv 2> $(VENV)/install.log || { cat $(VENV)/install.log; exit 1; }
	@$(VENV)/bin/uv pip install --quiet --compile-bytecode --require-hashes --python $(VENV)/bin/python -r requirements.lock & \
	  job=$$!; while kill -0 $$job 2> /dev/null; do printf .; sleep 2; done; echo; wait $$job
	@$(VENV)/bin/uv pip install --quiet --python $(VENV)/bin/python --no-deps --editable .
	@touch $@

# after editing the dependencies in pyproject.toml
lock: $(STAMP)
	uv pip compile --quiet --universal --python-version 3.11 --no-header --no-annotate --generate-hashes \
	  --extra dev --extra slurm --extra gpu --extra onnx pyproject.toml --output-file requirements.lock

clean:
	rm -rf $(VENV) .snakemake results/smoke mlflow.db mlruns logs benchmarks
