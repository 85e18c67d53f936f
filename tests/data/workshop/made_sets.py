"""A small set, operations as people write them, and what a version holds."""

import json

from pydantic import TypeAdapter

from loratory.engine.config.run import DatasetConfig
from loratory.engine.data.source import SourceOptions, open_source
from loratory.engine.data.workshop.exchange import add_set
from loratory.engine.data.workshop.operations import Operation
from loratory.engine.data.workshop.sets import find_set
from tests.data.checks import write_rows

ROWS = [{"instruction": f"Question {number}?", "output": f"Answer {number}."} for number in range(1, 9)]


def operation(**fields):
    """Return an operation, parsed as from a file."""
    return TypeAdapter(Operation).validate_json(json.dumps(fields))


def make_set(home, folder, rows=ROWS, name="faq", **settings):
    """Make a set of a file."""
    file = write_rows(folder / f"{name}-source.jsonl", rows)
    config = DatasetConfig(source=str(file), **settings)
    return add_set(home, name, config, author="ann", require_space=lambda _: None)


def apply(home, *operations, name="faq", since=None, author="ann"):
    """Add operations to a set, and return their ids."""
    dataset = find_set(home, name)
    parsed = [operation(**fields) for fields in operations]
    entries = dataset.append(parsed, since=since, author=author)
    return [entry.id for entry in entries]


def read(home, source="set:faq"):
    """Return the values of a version by row, from 1."""
    rows = open_source(DatasetConfig(source=source), SourceOptions(home=home)).records()
    return {record.row + 1: record.value for record in rows if record is not None}


def newest(home, name="faq"):
    """Return the name of the newest version."""
    return find_set(home, name).versions[-1].name
