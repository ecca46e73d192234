# make train ENV=hopper       trains; PRESET=paper|cpu|cpu_long|cpu_a2c|cpu_a2c_passes|smoke SEED=0 RUN=runs/name ARGS="--value-gradient.path-length 3"
#                             WORLD_MODEL=polygrad|autoregressive|distilled|transformer|ensemble|dreamer|simulator
# make train ENV=hopper SEEDS=5   trains seeds 0 to 4 (SEED=10: 10 to 14) as one program, in RUN/seed0 and so on
# make install JAX=cuda13     picks the build of JAX: cpu (default), cuda13 or tpu; remembered afterwards
# make install PYTHON=python3.14   picks the interpreter (3.11 to 3.14; by default the first that is there)
# make fit DATASET=runs/name   trains a world model alone on recorded transitions (WORLD_MODEL=, PRESET=, SEED=, RUN=)
# make dataset ENV=hopper     a run as a Minari dataset (RUN=runs/name; trained first if there is none), in datasets/
# make ablations ENV=hopper   the paper's ablations (Figure 7) beside its rule; SEEDS=3 PRESET=cpu_a2c RUN=runs/folder
# make figures               draws the figures of results/ again from their CSV files
# make report                makes report.html: all results but the archive's early searches beside the paper's claims, in one file
# make docs                  builds the documentation into site/, strictly (a virtual environment of its own, .venv-docs)
# make accelerator           measures a GPU or TPU in eight minutes, into results/gpu/ (ARGS="--rehearse --out FOLDER": here)
# make test, make test-slow  most tests, in five minutes on two cores; those of whole runs, in a few more (ARGS=FILE: all of a file)
# make help, make lint, make tensorboard [RUN=...], make benchmark [ARGS=...], make clean
# make lock                  renews the pins of requirements{,-dev,-docs}.txt and constraints*.txt by uv (UPGRADE=--upgrade: newest)
#
# Assigned with =, so that they come from the command line only: many shells have an ENV of their own.
ENV =
WORLD_MODEL =
PRESET =
SEED =
SEEDS =
RUN =
DATASET =
ARGS =
UPGRADE =
WORKERS = 2
VENV = .venv
BIN = $(VENV)/bin
PYTHONS = python3.12 python3.13 python3.14 python3.11 python3
# A Python that suits makes a venv with pip: ensurepip is what Debian's python3-venv adds.
SUITS = import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))
JAX_BUILDS = cpu cuda13 tpu
JAX := $(or $(shell cat $(VENV)/jax-build 2>/dev/null),cpu)
PYTHON := $(shell cat $(VENV)/python-asked-for 2>/dev/null)
# The stamp names both, so that another JAX= or PYTHON= is another target.
BUILD = $(JAX)$(addprefix -,$(notdir $(PYTHON)))
INSTALLED = $(VENV)/installed-$(BUILD)
INSTALLED_DEV = $(VENV)/installed-dev-$(BUILD)
INSTALLED_MINARI = $(VENV)/installed-minari-$(BUILD)

.PHONY: help install train fit dataset figures report ablations test test-slow lint docs tensorboard accelerator benchmark lock clean
.DEFAULT_GOAL := install
unexport ENV

# One word of the shell, whatever is in it: $(call option,--run,$(RUN)) is nothing where RUN is empty. ARGS stay words.
# Not every shell expands the ~ of RUN=~/name.
at_home = $(if $(filter ~/%,$(firstword $(1))),$(patsubst ~/%,$(HOME)/%,$(1)),$(1))
quoted = '$(subst ','\'',$(call at_home,$(1)))'
option = $(if $(2),$(1) $(call quoted,$(2)))

install: $(INSTALLED)

help:
	@sed -n '/^#/!q; /^# Assigned/q; s/^# \{0,1\}//p' $(firstword $(MAKEFILE_LIST))

# A venv without pip is left by an interrupted call and is made anew, as is one of another Python.
$(INSTALLED): requirements.txt setup.cfg pyproject.toml
	@case " $(JAX_BUILDS) " in *" $(JAX) "*) ;; *) echo "JAX is $(JAX); allowed: $(JAX_BUILDS)" >&2; exit 2;; esac
	@if [ -e $(VENV)/build ] && [ "$$(cat $(VENV)/build)" != "$(BUILD)" ]; then rm -rf $(VENV); fi
	@{ $(BIN)/python -c '$(SUITS)' && $(BIN)/python -m pip --version; } >/dev/null 2>&1 || { rm -rf $(VENV); \
	  for python in $(or $(PYTHON),$(PYTHONS)); do \
	    if $$python -c '$(SUITS)' 2>/dev/null; then \
	      echo "making $(VENV) with $$python"; exec $$python -m venv $(VENV); fi; \
	  done; echo "no suitable Python among: $(or $(PYTHON),$(PYTHONS)); allowed: 3.11 to 3.14 with venv (Debian: apt" \
	    "install python3-venv), named by PYTHON=" >&2; exit 2; }
	@echo $(BUILD) > $(VENV)/build; echo $(JAX) > $(VENV)/jax-build; echo $(PYTHON) > $(VENV)/python-asked-for
	@echo "installing the pinned requirements with JAX for $(JAX) into $(VENV) (CPU: about 1.2 GB on disk) ..."
	@$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check -r requirements.txt \
	  $(if $(filter-out cpu,$(JAX)),"jax[$(JAX)]")
	@# pip compiles on one core, this on all. Templates that are no Python are no error.
	@$(BIN)/python -W ignore -m compileall -q -j 0 $(VENV)/lib >/dev/null 2>&1 || true
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

$(INSTALLED_DEV): requirements-dev.txt $(INSTALLED)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@

# exec: a SIGTERM that make passes on reaches the program, not a shell in between.
train: $(INSTALLED)
	@exec $(BIN)/polygrad train $(call option,--env,$(ENV)) $(call option,--preset,$(PRESET)) \
	  $(call option,--seed,$(SEED)) $(call option,--seeds,$(SEEDS)) $(call option,--run,$(RUN)) \
	  $(call option,--world-model,$(WORLD_MODEL)) $(ARGS)

fit: $(INSTALLED)
	@exec $(BIN)/polygrad fit $(call option,--dataset,$(DATASET)) $(call option,--preset,$(PRESET)) \
	  $(call option,--seed,$(SEED)) $(call option,--out,$(RUN)) $(call option,--world-model,$(WORLD_MODEL)) $(ARGS)

$(INSTALLED_MINARI): setup.cfg $(INSTALLED)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --editable ".[minari]"
	@touch $@

dataset: $(INSTALLED_MINARI)
	@exec $(BIN)/polygrad dataset $(call option,--env,$(ENV)) $(call option,--preset,$(PRESET)) \
	  $(call option,--seed,$(SEED)) $(call option,--run,$(RUN)) $(ARGS)

# One file of tests goes to one worker, so that its compiled functions are compiled once; long files first.
PYTEST = $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --durations 30
test: $(INSTALLED_DEV)
	@$(PYTEST) $(or $(ARGS),-m "not slow")

test-slow: $(INSTALLED_DEV)
	@$(PYTEST) -m slow $(ARGS)

# Section 5.4 of the paper, at a budget of two cores: a grid that resumes, whose rows and figure go to results/.
RULES = score random_actions policy_sampling no_clipping state_update noisy_states
ablations: $(INSTALLED)
	@case "$(or $(SEEDS),3)" in 0*|*[!0-9]*) echo "SEEDS is $(SEEDS); allowed: how many, 1 or more" >&2; exit 2;; esac
	@exec $(BIN)/python experiments/learning/training_runs.py --rules $(RULES) --jobs 2 --threads 1 \
	  --experiment $(call quoted,$(subst /,_,$(or $(ENV),hopper))_ablations) \
	  $(call option,--env,$(or $(ENV),hopper)) $(call option,--preset,$(or $(PRESET),cpu_a2c)) \
	  --seeds $$(seq -s ' ' 0 $$(( $(or $(SEEDS),3) - 1 ))) --out results/learning_curves $(call option,--runs,$(RUN)) $(ARGS)

lint: $(INSTALLED_DEV)
	@$(BIN)/ruff check .

# An experiment draws every folder that holds its CSV file, but for two that are compared in a table of their README.
figures: $(INSTALLED)
	@set -e; for experiment in world_models/prediction_error world_models/distilled_error world_models/small_data \
	    world_models/denoiser_output world_models/partial_observation world_models/learning_rates \
	    world_models/training_curves world_models/computation_time \
	    guidance/oracle:oracle_study guidance/guidance_error guidance/unsettled_actions \
	    guidance/action_distribution guidance/gradient_study; do \
	  subject=$${experiment%%/*}; file=$${experiment##*[/:]}; csv=$${experiment#*/}; csv=$${csv%%:*}.csv; \
	  for path in $$(find results/$$subject -name "$$csv" -not -path "*/executed/*" -not -path "*/newest/*" | sort); do \
	    echo "$$path"; $(BIN)/python experiments/$$subject/$$file.py --out "$$(dirname "$$path")" --figure-only; \
	  done; \
	done
	@for folder in results/learning_curves results/archive/former_preset results/archive/value_gradient_search \
	  results/archive/a2c_options_search; do \
	  $(BIN)/python experiments/learning/training_runs.py --out $$folder --figure-only || exit; \
	done
	@for benchmark in limits scaling; do \
	  $(BIN)/python benchmarks/$$benchmark.py --out results/$$benchmark --figure-only || exit; \
	done
	@for curves in hopper $(foreach task,hopper walker2d halfcheetah,$(task)_long $(task)_a2c_options); do \
	  $(BIN)/python experiments/learning/curves_beside.py --experiment $$curves --beside $${curves%%_*}_model_free \
	    --out results/learning_curves || exit; \
	done
	@$(BIN)/python experiments/learning/across_tasks.py --against PolyGRAD --out results/learning_curves \
	  --experiments $(foreach task,hopper walker2d halfcheetah,$(task)_long $(task)_a2c_options $(task)_model_free)
	@for folder in results/archive/preset_search_1 results/archive/preset_search_2; do \
	  echo "$$folder"; $(BIN)/python experiments/archive/plot_search.py $$folder || exit; \
	done

report: $(INSTALLED_DEV)
	@$(BIN)/python experiments/report/build.py $(ARGS)

# The site is read from the source without importing it: no JAX, and an environment of its own, so that the pins of the
# package and of the site never meet. NO_MKDOCS_2_WARNING: Material says at every build that it gets critical fixes until
# May 2027, and that Zensical, its successor, reads the same mkdocs.yml.
VENV_DOCS = .venv-docs
$(VENV_DOCS)/installed: requirements-docs.txt
	@for python in $(or $(PYTHON),$(PYTHONS)); do \
	  if $$python -c '$(SUITS)' 2>/dev/null; then exec $$python -m venv --clear $(VENV_DOCS); fi; \
	done; echo "no Python found; allowed: 3.11 to 3.14 with venv (Debian: apt install python3-venv)" >&2; exit 2
	@$(VENV_DOCS)/bin/python -m pip install --quiet --no-compile --disable-pip-version-check -r requirements-docs.txt
	@touch $@

docs: $(VENV_DOCS)/installed
	@NO_MKDOCS_2_WARNING=1 $(VENV_DOCS)/bin/mkdocs build --quiet --strict $(ARGS)
	@echo "documentation: site/index.html (its search needs a server: python3 -m http.server --directory site)"

tensorboard: $(INSTALLED)
	@$(BIN)/polygrad tensorboard $(call option,,$(RUN))

accelerator: $(INSTALLED)
	@$(BIN)/python benchmarks/accelerator.py $(ARGS)

benchmark: $(INSTALLED)
	@$(BIN)/python benchmarks/rollout_speed.py $(ARGS)

# uv resolves once for every Python and system, with markers where they differ; pins stay where nothing asks for others.
LOCK = uv pip compile --universal --quiet --no-annotate --custom-compile-command "make lock" $(UPGRADE)
lock:
	@$(LOCK) --python-version 3.11 setup.cfg --extra all -o requirements.txt
	@$(LOCK) --python-version 3.11 --group pyproject.toml:dev -c requirements.txt -o requirements-dev.txt
	@$(LOCK) --python-version 3.11 --group pyproject.toml:docs -o requirements-docs.txt
	@$(LOCK) --python-version 3.11 setup.cfg --extra all --group pyproject.toml:dm-control -o constraints-mujoco-3.17.txt

# Runs are kept.
clean:
	rm -rf $(VENV) $(VENV_DOCS) site build dist *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
