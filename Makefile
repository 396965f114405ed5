# make quickstart: install, and run the main job on data that ships with the dependencies
# make test:       install, and run every check that CI runs
PYTHONS := python3.13 python3.12 python3.11 python3 python
PYTHON ?= $(shell for p in $(PYTHONS); do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin

.PHONY: quickstart test check unit hosts faults bench embedded methods adversarial questions

# compiled once: where none may write, each of Ray's processes would compile all of torch and ray anew
.venv/installed: pyproject.toml
	@test -n "$(PYTHON)" || { echo "needs Python 3.11 or newer: make PYTHON=/path/to/python"; exit 2; }
	$(PYTHON) -m venv --clear .venv
	$(BIN)/pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --editable '.[dev]'
	@touch $@

quickstart: .venv/installed
	$(BIN)/dp4tl run experiments/quickstart.yaml

test: check unit

check: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy dp4tl_ray tests

# two processes at work: the three files of tests of Ray wait for one another
unit: .venv/installed
	$(BIN)/pytest -q --durations=10 -n 4 --dist loadfile --no-loadscope-reorder

# cluster.yaml on two hosts made of network namespaces; root only, on Linux
hosts: .venv/installed
	$(BIN)/pytest -q -m hosts tests/hosts

# 64 injected faults: 45 minutes on two cores; two kinds of them need root
faults: .venv/installed
	$(BIN)/python -m tests.faults

# one JSON object per line: make bench, or make bench BENCH=name
bench: .venv/installed
	$(BIN)/python -m tests.benchmarks $(BENCH)

# the studies of the README: 45 minutes on two cores
embedded: .venv/installed
	$(BIN)/dp4tl run experiments/embedded_budget.yaml
	$(BIN)/dp4tl run experiments/embedded_lossless.yaml

# which methods keep what: the comparison, the yardstick, and one subset for three targets
methods: .venv/installed
	$(BIN)/dp4tl run experiments/methods_embedded.yaml
	$(BIN)/dp4tl run experiments/counterfactual_embedded.yaml
	$(BIN)/dp4tl run experiments/multi_target_embedded.yaml

# adversarial pretraining: variants, radii, and what equal cost buys; 80 minutes on two busy cores
adversarial: .venv/installed
	$(BIN)/dp4tl run experiments/adversarial_embedded.yaml

# the paper's further questions: without labels, weaker surrogates, few images, other architectures
questions: .venv/installed
	$(BIN)/dp4tl run experiments/feature_mapping_moco_embedded.yaml
	$(BIN)/dp4tl run experiments/surrogate_embedded.yaml
	$(BIN)/dp4tl run experiments/few_shot_embedded.yaml
	$(BIN)/dp4tl run experiments/cross_architecture_embedded.yaml
