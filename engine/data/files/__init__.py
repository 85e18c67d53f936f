"""The file kinds: the one table of endings, and opening a file by its content."""

from pathlib import Path

from engine.data.files.access import UnpackedFile, gzipped_magic, open_regular, shown_name
from engine.data.files.endings import family_of
from engine.data.files.parquet import PARQUET_MAGIC, ParquetRows
from engine.data.files.text_file import TextFileRows
from engine.data.files.text_stream import TextStream
from engine.data.records import RowSource
from engine.errors import DatasetError


def open_file(path: Path, index_folder: Path | None = None) -> RowSource:
    """Open one file by what is in it.

    Raises:
        DatasetError: If it cannot be read, or holds no rows.
    """
    with open_regular(path) as file:
        magic = file.read(4)
    if magic == PARQUET_MAGIC:
        return ParquetRows(path)
    if gzipped_magic(path) == PARQUET_MAGIC:
        return ParquetRows(path, UnpackedFile(path, index_folder))
    if family_of(path.name) == "parquet":
        TextStream(path)  # says what it is instead, where that can be told
        raise DatasetError(
            f"{shown_name(path.name)} is no Parquet file, whatever its name says.", "Choose the right file."
        )
    return TextFileRows(path, index_folder)
