# make demo: set up, train on the embedded corpus, transcribe a file.   make test: set up, whole suite.
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
DEMO    = results/toy_ctc/1

# Threads that wait without spinning: on a shared machine training is several times faster so.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: setup demo test lint clean

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[toy,hub,separation,metrics,tts,parity,dev]"
	touch $@

# The demo's model is too small for a second thread to help.
demo: export OMP_NUM_THREADS ?= 1
demo: setup
	$(BIN)/python recipes/asr/train.py recipes/asr/hparams/toy_ctc.yaml
	@echo
	@echo "Word error rate on voices and sentences never heard in training:"
	$(BIN)/speechkit score $(DEMO)
	@echo
	$(BIN)/speechkit transcribe --model $(DEMO)/model $$(ls data/toy/test/*/*/*.flac | head -n 1)
	@echo
	@echo "The run's page: $(DEMO)/report.html"

test: setup
	$(BIN)/python -m pytest

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build *.egg-info
