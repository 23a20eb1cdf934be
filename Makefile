# `make` lists what there is to do. Every target sets up .venv by itself when it is not there.
PYTHON ?= python3
# A local pip option, for example PIP="--extra-index-url https://download.pytorch.org/whl/cpu" for a CPU-only torch.
PIP ?=
DATA ?= data/demo
BACKBONE ?= demo
TUNING ?= single_adapter
ARGS ?=
WORKERS ?= 2

BIN := .venv/bin
STAMP := .venv/.installed
RUN := $(BIN)/vl-peft

# Which class the backbone is of can be told from its name.
ifneq (,$(findstring t5,$(BACKBONE)))
  T5_image := --config experiments/image/t5.yaml
  T5_video := --config experiments/video/t5.yaml
endif

# The demo corpus has its own batch sizes and length of training; real data takes the published ones.
ifeq ($(DATA),data/demo)
  DEMO_image := $(DATA)/demo_image.done
  DEMO_video := $(DATA)/demo_video.done
  CONFIG_image := --config experiments/demo/image.yaml
  CONFIG_video := --config experiments/demo/video.yaml
else
  CONFIG_image :=
  CONFIG_video :=
endif

.PHONY: help setup train-video train-image plan-video plan-image demo pretrain-demo test lint tensorboard clean
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16
	@echo
	@echo "Options: DATA=$(DATA) BACKBONE=$(BACKBONE) TUNING=$(TUNING) ARGS=\"--trainer.max_epochs 2\" PIP= PYTHON="

setup: $(STAMP) ## make .venv with the tested versions of everything

$(STAMP): requirements.lock setup.cfg pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check $(PIP) -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

$(DATA)/demo_%.done: | $(STAMP)
	$(RUN) data demo --root $(DATA) --parts $* --workers $(WORKERS)
	@touch $@

train-video: $(STAMP) $(DEMO_video) ## train on TVQA, How2QA, TVC and YC2C (the embedded corpus, or DATA=folder)
	$(RUN) fit $(call configs,video) $(ARGS)

train-image: $(STAMP) $(DEMO_image) ## train on VQAv2, GQA, NLVR2 and COCO (the embedded corpus, or DATA=folder)
	$(RUN) fit $(call configs,image) $(ARGS)

plan-video: $(STAMP) $(DEMO_video) ## print the training plan of train-video
	$(RUN) plan $(call configs,video) $(ARGS)

plan-image: $(STAMP) $(DEMO_image) ## print the training plan of train-image
	$(RUN) plan $(call configs,image) $(ARGS)

configs = --config experiments/base.yaml --config experiments/$(1)/base.yaml $(T5_$(1)) \
  --config experiments/$(1)/$(TUNING).yaml \
  $(CONFIG_$(1)) --trainer.logger.init_args.name $(1)-$(TUNING) --data.root $(DATA) \
  --model.backbone.init_args.pretrained $(BACKBONE)

demo: $(STAMP) $(DATA)/demo_image.done $(DATA)/demo_video.done ## write the embedded corpus and its features to data/demo

pretrain-demo: $(STAMP) ## pretrain the demo encoder and backbone anew (they are in the package already)
	$(RUN) data demo --root $(DATA) --parts pretrain --no-features --workers $(WORKERS)
	$(BIN)/python experiments/demo/pretrain_encoder.py --root $(DATA) --out runs/demo-encoder \
	  --minutes 13 --batch-size 64 --videos 6
	$(BIN)/python experiments/demo/pretrain_encoder.py --root $(DATA) --out vl_peft/features/demo \
	  --start runs/demo-encoder --pool-only --minutes 6 --batch-size 128 --videos 48
	$(RUN) data demo --root $(DATA) --parts pretrain --workers $(WORKERS)
	$(BIN)/python experiments/demo/init_backbone.py $(DATA) runs/demo-backbone/init
	rm -rf $(PARTS:%=runs/demo-%)
	before=init; for part in $(PARTS); do \
	  $(RUN) fit --config experiments/base.yaml --config experiments/demo/pretrain/base.yaml \
	    --config experiments/demo/pretrain/$$part.yaml --data.root $(DATA) --trainer.logger.init_args.name demo-$$part \
	    --model.backbone.init_args.pretrained runs/demo-backbone/$$before && \
	  $(BIN)/python experiments/demo/ship_backbone.py runs/demo-$$part/version_0 runs/demo-backbone/$$part || exit 1; \
	  before=$$part; done
	cp runs/demo-backbone/questions/* vl_peft/backbones/demo

# Each part of the backbone's pretraining begins with what the one before it has saved.
PARTS := lookup captions tell seen match choose choose_longer questions

test: lint ## lint, then the tests
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS)

lint: $(STAMP) ## ruff, ruff format --check, mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy vl_peft datamodules

tensorboard: $(STAMP) ## look at the runs
	$(BIN)/tensorboard --logdir runs

clean: ## remove .venv, runs and the embedded corpus
	rm -rf .venv runs data/demo build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
