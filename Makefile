# A virtual environment with the pinned versions, and tasks that use it. No conda or GPU is needed.

PYTHON ?= python3
CORES ?= all
WORKERS ?= 2
NIGHTLY ?= nightly

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip
REPORT := results/report/report.html

# Rules call `python -m her2`, which must find the environment's python.
ON_PATH := PATH="$(CURDIR)/$(BIN):$$PATH"
VERSIONS := $(BIN)/python -c 'import sys; from importlib.metadata import version; \
	print("Python", sys.version.split()[0], \
	*(f"| {name} {version(name)}" for name in ("her2", "snakemake", "torch", "torchvision", "timm", \
	"openslide-bin", "zarr")))'
# A file whose hash is not in the lock is not installed. CPU=1 leaves out the CUDA libraries, which are
# useless without a GPU (5 GB), and PyTorch's CPU builds are other files of the same versions, from an
# index of its own (docs/install.md): these two are installed apart, without hashes. pip would compile
# 20,000 modules on one core, so that all cores do it afterwards.
define install_locked
awk '/^[^ ]/ {apart = $(if $(CPU),/^(nvidia-|cuda-|triton=|torch=|torchvision=)/,0)} !apart' $(1) | \
	$(PIP) install --no-compile --no-deps --require-hashes --requirement /dev/stdin
$(if $(CPU),grep -oE '^(torch|torchvision)==[^ ]+' $(1) | $(PIP) install --no-compile --no-deps --requirement /dev/stdin)
-$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib
endef
SIDE_BY_SIDE = -n $(WORKERS) --dist loadfile --no-loadscope-reorder
COMPILE = $(BIN)/uv --no-config pip compile --quiet pyproject.toml --universal --python-version 3.11 \
	--fork-strategy fewest --no-annotate --generate-hashes --custom-compile-command "make lock" \
	$(if $(UPGRADE),--upgrade)

.PHONY: help demo test test-all env lock clean
.DEFAULT_GOAL := help

help:
	@echo "make demo    install the pinned environment into $(VENV), run the demo cohort, print the report's path"
	@echo "make test    install the test tools as well; run linters, type checks and tests (15 minutes)"
	@echo "make test-all    make test, then the nightly tests: demo, SLURM, kills, simulations, campaigns (hours)"
	@echo "make env     install the environment only"
	@echo "make lock    update the pins in envs/ after dependencies change (UPGRADE=1: newest versions)"
	@echo "make clean   remove $(VENV) and the tools' caches; results/, resources/ and cache/ are kept"
	@echo
	@echo "PYTHON=python3.12       interpreter (3.11 or newer) for a new $(VENV); run 'make clean' first"
	@echo "CPU=1                   without the CUDA libraries; needs PyTorch's CPU index (docs/install.md)"
	@echo "CORES=4                 cores that the demo may use (all)"
	@echo "SNAKEMAKE_ARGS=-n       more arguments for snakemake"
	@echo "PYTEST_ARGS='-k folds'  more arguments for pytest; WORKERS=4 runs four tests at a time (2)"

demo: env
	$(ON_PATH) $(BIN)/snakemake --cores $(CORES) $(SNAKEMAKE_ARGS)
	@echo
	@echo "The report: $(CURDIR)/$(REPORT)"

test: $(VENV)/installed-lock-test.txt
	@$(VERSIONS)
	@# mypy takes as long as all linters together.
	$(BIN)/mypy & types=$$!; linted=0; \
	{ $(BIN)/ruff check . && $(BIN)/ruff format --check . && \
	$(BIN)/snakefmt --check Snakefile workflow && $(BIN)/lint-imports --no-logo; } || linted=1; \
	wait $$types && exit $$linted
	$(ON_PATH) $(BIN)/pytest -m 'not nightly' $(SIDE_BY_SIDE) $(PYTEST_ARGS)

# These mostly wait: for a cluster, for a process to be killed, for the demo's longest job. Those that measure
# moments then run one at a time, and of their files alone, since reading all others takes as long.
test-all: test
	$(ON_PATH) $(BIN)/pytest -m '($(NIGHTLY)) and not alone' $(SIDE_BY_SIDE) $(PYTEST_ARGS) || [ $$? = 5 ]
	$(ON_PATH) $(BIN)/pytest -m '($(NIGHTLY)) and alone' $(PYTEST_ARGS) \
		$$(grep -rl mark.alone tests --include='test_*.py') || [ $$? = 5 ]

env: $(VENV)/installed-lock.txt
	@$(VERSIONS)

lock: | $(BIN)/pip
	$(PIP) install --quiet "uv>=0.9,<1"
	$(COMPILE) --extra slurm --extra view --output-file envs/lock.txt
	$(COMPILE) --extra slurm --extra view --extra test --constraint envs/lock.txt --output-file envs/lock-test.txt
	$(BIN)/python envs/make_conda_env.py
	@echo "Updated envs/lock.txt, envs/lock-test.txt and envs/her2.yaml; 'make test' installs and tests them."

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find her2 tests envs -name __pycache__ -type d -prune -exec rm -rf {} +
	@echo "results/, resources/ and cache/ hold your work; remove them by hand."

# ensurepip writes bin/pip last, so that an interrupted environment is made again.
$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed; $(PYTHON) is " + sys.version.split()[0] + ". Choose another: make PYTHON=python3.12 ...")'
	@$(PYTHON) -c 'import ensurepip, venv' || { echo "$(PYTHON) cannot make virtual environments; on Debian and Ubuntu, run apt-get install python3-venv"; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)

# The stamps are written last, and each is a copy of the lock file that was installed.
$(VENV)/installed-lock.txt: envs/lock.txt pyproject.toml | $(BIN)/pip
	@echo "Installing the pinned packages into $(VENV) (about 6 GB; takes minutes the first time)"
	$(call install_locked,envs/lock.txt)
	$(PIP) install --no-deps --editable .
	@cp envs/lock.txt $@

$(VENV)/installed-lock-test.txt: envs/lock-test.txt $(VENV)/installed-lock.txt
	$(call install_locked,envs/lock-test.txt)
	$(PIP) check
	@cp envs/lock-test.txt $@
