# `make compare` and `make test` are the two commands to know. Each installs what it needs
# into this checkout (.venv, and .tools for uv if there is none) before it starts.

.DEFAULT_GOAL := help
.PHONY: help install compare test test-fast test-slow coverage test-oldest check format docs docs-serve lock bench clean

BIN := .venv/bin
ARGS ?=
PYTEST := $(BIN)/python -m pytest
# A file's tests stay in one process, since they share what is started for the file.
PARALLEL := -n auto --dist loadfile
BENCHMARKS := checkout lambda_import integration_imports celery_tasks web_get_article lambda_fleet activity_cost locust_sampling load_generator many_names truth_table network compare_cost cold_start budget worker_scaling

help: ## list the commands
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | column -t -s '|'

install: ## make .venv from the lock file
	@scripts/bootstrap

compare: install ## run every target under the same load, and report connections and latency
	@$(BIN)/poolkit compare $(ARGS)

# pytest exits with 5 where ARGS name files that have no test for one of the two runs.
test: install ## all default tests, in a few minutes
	$(PYTEST) $(PARALLEL) -m "not slow and not alone" $(ARGS) || [ $$? = 5 ]
	$(PYTEST) -m "alone and not slow" $(ARGS) || [ $$? = 5 ]

test-fast: install ## the tests that start no process and no server, in less than a minute
	$(PYTEST) $(PARALLEL) -m pure $(ARGS)

test-slow: install ## the tests that take minutes
	$(PYTEST) -n 2 --dist loadfile --no-loadscope-reorder -m slow $(ARGS)

coverage: install ## the default tests again, with a report of what they reach in coverage/
	$(PYTEST) $(PARALLEL) -m "not slow and not alone" --cov --cov-report=term --cov-report=html $(ARGS)

test-oldest: install ## tests of config and behaviour under the oldest SQLAlchemy allowed
	scripts/test-oldest $(ARGS)

check: install ## format, lint, types, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install ## put the code into its format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: install ## build the documentation into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

docs-serve: install ## show the documentation on http://127.0.0.1:8000 while it is edited
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

lock: install ## renew requirements.lock from pyproject.toml; it names no package index
	scripts/lock

bench: install ## every benchmark, one after the other
	@for name in $(BENCHMARKS); do echo "== benchmarks/$$name.py"; $(BIN)/python benchmarks/$$name.py || exit 1; done

clean: ## remove what the commands above made
	rm -rf coverage .coverage .venv .tools .poolkit .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis site
