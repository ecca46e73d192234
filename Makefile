# make train ENV=hopper       trains; PRESET=paper|cpu|smoke SEED=0 RUN=runs/name ARGS="--a2c.gae-lambda 0.95"
#                             WORLD_MODEL=polygrad|autoregressive|transformer|ensemble|dreamer|simulator
# make install JAX=cuda13     picks the build of JAX: cpu (default), cuda13 or tpu; remembered afterwards
# make dataset ENV=hopper     a run as a Minari dataset (RUN=runs/name; trained first if there is none), in datasets/
# make figures               draws the figures of results/ again from their CSV files
# make docs                  builds the documentation into site/, strictly (a virtual environment of its own, .venv-docs)
# make test, make lint, make tensorboard [RUN=...], make benchmark [ARGS=...], make clean
#
# Assigned with =, so that they come from the command line only: many shells have an ENV of their own.
ENV =
WORLD_MODEL =
PRESET =
SEED =
RUN =
ARGS =
WORKERS = 2
VENV = .venv
BIN = $(VENV)/bin
JAX_BUILDS = cpu cuda13 tpu
JAX := $(or $(shell cat $(VENV)/jax-build 2>/dev/null),cpu)
# The stamp names the build, so that another JAX= is another target.
INSTALLED = $(VENV)/installed-$(JAX)
INSTALLED_DEV = $(VENV)/installed-dev-$(JAX)
INSTALLED_MINARI = $(VENV)/installed-minari-$(JAX)

.PHONY: install train dataset figures test lint docs tensorboard benchmark clean
.DEFAULT_GOAL := install
unexport ENV

install: $(INSTALLED)

# ensurepip is what Debian's python3-venv adds; a venv without pip is left by an interrupted call and is made anew.
$(INSTALLED): requirements.txt setup.cfg pyproject.toml
	@case " $(JAX_BUILDS) " in *" $(JAX) "*) ;; *) echo "JAX is $(JAX); allowed: $(JAX_BUILDS)" >&2; exit 2;; esac
	@if [ -e $(VENV)/jax-build ] && [ "$$(cat $(VENV)/jax-build)" != "$(JAX)" ]; then rm -rf $(VENV); fi
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { rm -rf $(VENV); \
	  for python in python3.12 python3.11 python3; do \
	    if $$python -c 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' \
	      2>/dev/null; then echo "making $(VENV) with $$python"; exec $$python -m venv $(VENV); fi; \
	  done; echo "no Python found; allowed: 3.11 or 3.12 with venv (Debian: apt install python3-venv)" >&2; exit 2; }
	@echo $(JAX) > $(VENV)/jax-build
	@echo "installing the pinned requirements with JAX for $(JAX) into $(VENV) (CPU: about 0.9 GB on disk) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt \
	  $(if $(filter-out cpu,$(JAX)),"jax[$(JAX)]")
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

$(INSTALLED_DEV): requirements-dev.txt $(INSTALLED)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@

# exec: a SIGTERM that make passes on reaches the program, not a shell in between.
train: $(INSTALLED)
	@exec $(BIN)/polygrad train $(if $(ENV),--env $(ENV)) $(if $(PRESET),--preset $(PRESET)) $(if $(SEED),--seed $(SEED)) \
	  $(if $(RUN),--run $(RUN)) $(if $(WORLD_MODEL),--world-model $(WORLD_MODEL)) $(ARGS)

$(INSTALLED_MINARI): setup.cfg $(INSTALLED)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --editable ".[minari]"
	@touch $@

dataset: $(INSTALLED_MINARI)
	@exec $(BIN)/polygrad dataset $(if $(ENV),--env $(ENV)) $(if $(PRESET),--preset $(PRESET)) \
	  $(if $(SEED),--seed $(SEED)) $(if $(RUN),--run $(RUN)) $(ARGS)

# One file of tests goes to one worker, so that its compiled functions are compiled once.
test: $(INSTALLED_DEV)
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --durations 30 $(ARGS)

lint: $(INSTALLED_DEV)
	@$(BIN)/ruff check .

# A folder of results names its experiment by the CSV file that it holds.
figures: $(INSTALLED)
	@set -e; for experiment in oracle:oracle_study guidance_error:guidance_error runs:seeds \
	    gradient_study:gradient_study action_distribution:action_distribution \
	    computation_time:computation_time prediction_error:prediction_error \
	    small_data:small_data partial_observation:partial_observation learning_rates:learning_rates \
	    training_curves:training_curves; do \
	  for csv in $$(find results -name "$${experiment%%:*}.csv" -not -path "*/imagined/*" | sort); do \
	    echo "$$csv"; $(BIN)/python experiments/$${experiment##*:}.py --out "$$(dirname "$$csv")" --figure-only; \
	  done; \
	done
	@$(BIN)/python experiments/plot_search.py results/cpu_search; $(BIN)/python experiments/plot_search.py results/cpu_search_2

# The site is read from the source without importing it: no JAX, and an environment of its own, so that the pins of the
# package and of the site never meet. NO_MKDOCS_2_WARNING: Material says at every build that it gets critical fixes until
# May 2027, and that Zensical, its successor, reads the same mkdocs.yml.
VENV_DOCS = .venv-docs
$(VENV_DOCS)/installed: requirements-docs.txt
	@for python in python3.12 python3.11 python3; do \
	  if $$python -c 'import ensurepip, sys, venv; sys.exit(sys.version_info[:2] < (3, 11))' 2>/dev/null; then \
	    exec $$python -m venv --clear $(VENV_DOCS); fi; \
	done; echo "no Python found; allowed: 3.11 or newer with venv (Debian: apt install python3-venv)" >&2; exit 2
	@$(VENV_DOCS)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-docs.txt
	@touch $@

docs: $(VENV_DOCS)/installed
	@NO_MKDOCS_2_WARNING=1 $(VENV_DOCS)/bin/mkdocs build --quiet --strict $(ARGS)
	@echo "documentation: site/index.html"

tensorboard: $(INSTALLED)
	@$(BIN)/tensorboard --logdir $(or $(RUN),runs)

benchmark: $(INSTALLED)
	@$(BIN)/python benchmarks/rollout_speed.py $(ARGS)

# Runs are kept.
clean:
	rm -rf $(VENV) $(VENV_DOCS) site build dist *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
