"""The columns of a dataset, also where no format fits them: what a person needs to say which one is what."""

from collections.abc import Mapping
from typing import Any

from engine.config.dataset import DatasetConfig
from engine.data.detect import likeliest_format
from engine.data.examine import head_of, printable_names
from engine.data.page import DatasetColumns
from engine.data.source import SourceOptions, open_source


def read_columns(config: DatasetConfig, options: SourceOptions) -> DatasetColumns:
    """Look at the first rows of the first source.

    Raises:
        DatasetError: If it cannot be opened.
    """
    source = open_source(config, options)
    rows: list[Mapping[str, Any]] = [record.value for record in head_of(source) if record.value is not None]
    names = source.columns or tuple(dict.fromkeys(name for row in rows for name in row))
    return DatasetColumns(columns=printable_names(names), format=likeliest_format(config, rows))
