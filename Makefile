# What contributors run; .github/CONTRIBUTING.md explains it.
python = .venv/bin/python

.venv:
	python3 -m venv .venv && .venv/bin/pip install -e '.[test,docs]'

run: .venv  ## open the page
	$(python) app.py

check: .venv  ## linters, types, import contracts, names
	.venv/bin/ruff format --check . && .venv/bin/ruff check . && .venv/bin/mypy && .venv/bin/lint-imports && $(python) .ci/names.py

test: .venv  ## the quick round
	$(python) -m pytest -m "not e2e and not browser"

docs: .venv  ## write the references, and build the site
	$(python) docs/generate.py && .venv/bin/mkdocs build --strict

.PHONY: run check test docs
