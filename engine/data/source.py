"""Where rows come from."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.config.dataset import DatasetConfig
from engine.errors import DatasetError
from engine.paths import SAMPLES_FOLDER


@dataclass(frozen=True)
class Record:
    """One row as its file holds it."""

    row: int
    line: int | None
    value: dict[str, Any]


def read_records(config: DatasetConfig) -> Iterator[Record]:
    path = Path(config.source)
    if config.source.startswith("sample:"):
        path = SAMPLES_FOLDER / f"{config.source.removeprefix('sample:')}.jsonl"
    if not path.is_file():
        raise DatasetError(f"There is no dataset {config.source}.", "Choose a file, or one of the samples.")
    text = path.read_text(encoding="utf-8-sig")
    if text.lstrip().startswith("["):
        for row, value in enumerate(json.loads(text)):
            yield Record(row, None, value)
        return
    row = 0
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield Record(row, number, json.loads(line))
            row += 1
