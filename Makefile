# Everything runs in a virtual environment of its own; `make demo` and `make test` set it up themselves.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo demo-model test test-fast fuzz comfy lint bench bench-curve bench-quality setup clean

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml requirements.txt tests/constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c tests/constraints.txt -e ".[test,lint]"
	touch $@

demo: setup
	$(BIN)/latentsync-memsafe download faces
	$(BIN)/latentsync-memsafe demo --report output/demo.json

test: setup
	$(BIN)/latentsync-memsafe download faces
	$(BIN)/python -m pytest -n 2 --dist loadfile

# The tests that take at most a few seconds each.
test-fast: setup
	$(BIN)/latentsync-memsafe download faces
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow and not fuzz"

# Random search for failures, for as long as one likes; what it finds becomes an explicit case of a test.
fuzz: setup
	$(BIN)/python -m pytest -m fuzz

# A real ComfyUI in build/comfyui; with it, and with Chromium, `make test` tests nodes and page too.
comfy: setup
	$(BIN)/python -m pip install --quiet -c tests/constraints.txt -e ".[comfy]"
	$(BIN)/python tests/support/install_comfyui.py build/comfyui

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	# mypy wants the package in a folder of its name, whatever this clone is called.
	link=$$(mktemp -d) && ln -s "$(CURDIR)" $$link/latentsync_memsafe && cd $$link \
		&& MYPYPATH=. "$(CURDIR)/$(BIN)/mypy" --config-file "$(CURDIR)/pyproject.toml"; \
		status=$$?; rm -r $$link; exit $$status

bench: setup
	$(BIN)/python benchmarks/stages.py
	$(BIN)/python benchmarks/denoiser.py
	$(BIN)/python benchmarks/jitter.py
	$(BIN)/python benchmarks/frame_pool.py
	$(BIN)/python benchmarks/vram_plan.py
	$(BIN)/python benchmarks/call_count.py
	$(BIN)/python benchmarks/memory.py

# PSNR and sync score against time for every way to denoise: JSON and the README's picture. What is in
# benchmarks/quality_curve.json is not measured again; a new face takes about 8 minutes of processor time.
bench-curve: setup
	$(BIN)/python -m pip install --quiet -c tests/constraints.txt -e ".[bench]"
	$(BIN)/python benchmarks/quality_curve.py

bench-quality: setup
	$(BIN)/python -m latentsync_memsafe.tools.demo_model.quality

# Train checkpoints/demo from scratch on the talking-head clips in the folder CLIPS; an interrupted run resumes.
demo-model: setup
	$(BIN)/latentsync-memsafe download faces
	$(BIN)/python -m latentsync_memsafe.tools.demo_model --data "$(CLIPS)" --out output/demo-model

clean:
	rm -rf $(VENV) output build *.egg-info
