# Everything here lives in .venv and reads nothing outside the repository. TORCH=2.9.1 does the same with that version of
# torch in place of the one in constraints.txt, in .venv-torch-2.9.1.
PYTHON ?= python3
VENV := .venv$(if $(TORCH),-torch-$(TORCH))
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: venv demo test fuzz lint bench docs clean

venv: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	sed '$(if $(TORCH),s/^torch==.*/torch==$(TORCH)/)' constraints.txt > $(VENV)/constraints.txt
	$(BIN)/pip install --quiet -c $(VENV)/constraints.txt torch
	$(BIN)/pip install --quiet -c $(VENV)/constraints.txt -e . pytest pytest-xdist hypothesis pandas onnx ruff pyright pdoc tensorboard playwright
	touch $(STAMP)

demo: venv
	$(BIN)/python examples/demo.py

test: venv
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal

# Both targets in turn, from fresh seeds that are printed; out/fuzz has the example that ran last.
FUZZ_SECONDS ?= 3600
fuzz: venv
	mkdir -p out/fuzz
	for target in layers stepper; do \
		$(BIN)/python tests/fuzz/run.py $$target --seconds $$(($(FUZZ_SECONDS) / 2)) --note out/fuzz/$$target || exit 1; \
	done

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

# Peers besides torch are skipped unless they are there: .venv/bin/pip install -c constraints.txt -e '.[bench]'
bench: venv
	@$(BIN)/python -c 'import jax, onnx, onnxruntime' 2>/dev/null || \
		echo "for JAX and ONNX Runtime: $(BIN)/pip install -c constraints.txt -e '.[bench]'"
	$(BIN)/python -m benchmarks

docs: venv
	$(BIN)/python docs/reference.py

clean:
	rm -rf .venv .venv-torch-* out dist
