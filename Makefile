# Needs `pip install -e '.[test,dev]'`.
PYTHON ?= python

.PHONY: all format check test pictures
all: format check test

format:
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

check:
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy lightning_annot

test:
	$(PYTHON) -m pytest

pictures:
	$(PYTHON) scripts/make_pictures.py
	$(PYTHON) scripts/make_page_pictures.py
