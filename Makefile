# Set-up, the demo and the tests. `make` alone lists the targets.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help install demo demo-detection demo-video design evolve study test test-slow test-timm test-timm-all test-wheel lint clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /\1\t/' | expand -t 16

install: $(INSTALLED)  ## make .venv and install the package with all that demo and tests need

$(INSTALLED): setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed, this is " + sys.version.split()[0])'
	@echo "Installing into $(VENV): PyTorch with its CUDA libraries, timm and the test tools; about 5.5 GB, 2 to 4 minutes."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

demo: $(INSTALLED)  ## train a small As-ViT on 1,797 real handwritten digits, anew in output/digits_demo (under 3 minutes)
	@echo "Training a small As-ViT on scikit-learn's handwritten digits: about a minute on 2 CPU cores, 10 MB in output/digits_demo."
	rm -rf output/digits_demo
	$(BIN)/python classification/train.py --config classification/recipes/digits_demo.yaml

test: $(INSTALLED)  ## the tests (under 20 minutes on 2 cores)
	@echo "Running the tests: about 15 minutes on 2 CPU cores, nothing is downloaded."
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS)

demo-detection: $(INSTALLED)  ## train a small Mask R-CNN on scenes of handwritten digits (needs detectron2 in .venv; 8 minutes)
	@$(BIN)/python detection/train_net.py --help > /dev/null
	rm -rf output/tiny_mask_rcnn_as_vit
	$(BIN)/python detection/digits_scenes.py --output output/digits_scenes --train 1200 --val 100
	$(BIN)/python detection/train_net.py --config-file detection/configs/tiny/mask_rcnn_as_vit.yaml
	$(BIN)/python detection/draw_predictions.py --config-file detection/configs/tiny/mask_rcnn_as_vit.yaml \
		--picture output/tiny_mask_rcnn_as_vit/predictions.png

demo-video: $(INSTALLED)  ## train tiny video ViTs on digits that move (5 minutes on a free core)
	OMP_NUM_THREADS=1 $(BIN)/python video/train_moving_digits.py

design: $(INSTALLED)  ## find a net without training, grow it into a family, train the first on digits (14 minutes)
	OMP_NUM_THREADS=1 $(BIN)/python tools/search_topology.py --steps 200 --img-size 64 --repeats 2 --output output/design/search
	OMP_NUM_THREADS=1 $(BIN)/python tools/grow.py --seed-net output/design/search/result.json --img-size 64 --repeats 2 \
		--low 10e6 --high 20e6 --output output/design/family
	OMP_NUM_THREADS=1 $(BIN)/python classification/train.py --config classification/recipes/digits_demo.yaml \
		--config output/design/family/net_1.yaml --phases null --output output/design --experiment trained --resume auto

evolve: $(INSTALLED)  ## train a supernet on digits, evolve a net in it, train it and others (a quarter of an hour)
	$(BIN)/python tools/evolution_study.py

study: $(INSTALLED)  ## the runs of docs/digits_study.md, anew or where they stopped (half an hour on 2 cores)
	$(BIN)/python tools/digits_study.py --results docs/results/digits_study.json --picture docs/images/digits_study.png

test-slow: $(INSTALLED)  ## the tests that take minutes each
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) -m slow

test-timm: $(INSTALLED)  ## timm's own tests over our models (downloads timm's source distribution, 3 MB)
	$(BIN)/python tests/timm_suite/run.py

test-timm-all: $(INSTALLED)  ## the same, over the larger models too
	$(BIN)/python tests/timm_suite/run.py --all

test-wheel: $(INSTALLED)  ## build the wheel and use it in an environment of its own
	rm -rf build  # setuptools would pack what an earlier build left there
	$(BIN)/python -m build --wheel --outdir build/wheel .
	$(PYTHON) -m venv build/wheel/venv
	build/wheel/venv/bin/python -m pip install --quiet build/wheel/*.whl
	cd build/wheel && venv/bin/python -W error::ImportWarning -c "import asvit_plugin, timm; from asvit_plugin.search import load_space; print('wheel', asvit_plugin.__version__, load_space('as_vit').name, sum(p.numel() for p in timm.create_model('as_vit_small').parameters()))"
	test -f build/wheel/venv/lib/python3*/site-packages/asvit_plugin/py.typed
	rm -rf build

lint: $(INSTALLED)  ## ruff
	$(BIN)/ruff check
	$(BIN)/ruff format --check

clean:  ## remove .venv, caches and outputs
	rm -rf $(VENV) .cache build dist output .pytest_cache .ruff_cache
