"""The file kinds and the one table of their endings. To add a kind, write its module and name it here."""

from pathlib import Path, PurePath

from loratory.engine.data.files.access import UnpackedFile, gzipped_start, open_regular, shown_name
from loratory.engine.data.files.base import BinaryRows, PlainTextReader, TextFileRows, TextReader, TextStart
from loratory.engine.data.files.columnar import ArrowRows, ParquetRows
from loratory.engine.data.files.delimited import DelimitedReader
from loratory.engine.data.files.json_files import JsonLinesReader, JsonValuesReader
from loratory.engine.data.files.text_stream import TextStream
from loratory.engine.data.files.xlsx import XlsxRows
from loratory.engine.data.records import RowSource
from loratory.engine.errors import DatasetError

FileKind = type[TextReader] | type[BinaryRows]

_BINARY_KINDS: tuple[type[BinaryRows], ...] = (ParquetRows, ArrowRows, XlsxRows)
# The last one accepts any text.
_TEXT_KINDS: tuple[type[TextReader], ...] = (JsonLinesReader, JsonValuesReader, DelimitedReader, PlainTextReader)
_KINDS: tuple[FileKind, ...] = (*_TEXT_KINDS, *_BINARY_KINDS)
_KIND_OF_ENDING = {ending: kind for kind in _KINDS for ending in kind.endings}
# Files that people choose by mistake: neither read, nor looked for on the Hub.
_OTHER_FILES = frozenset(
    ".7z .bin .bz2 .db .doc .docx .gguf .gz .h5 .html .ipynb .npy .npz .ods .odt .orc .pdf .pickle .pkl "
    ".pt .rtf .safetensors .sqlite .tar .tgz .xls .xml .xz .yaml .yml .zip .zst".split()
)

DATA_ENDINGS = tuple(sorted(_KIND_OF_ENDING))
DATA_LABELS = tuple(kind.label for kind in _KINDS)
_MAGIC_BYTES = 8


def kind_of(name: str) -> FileKind | None:
    """Return the kind by a file's extension, also if it is gzipped; None for any other extension."""
    return _KIND_OF_ENDING.get(PurePath(name.lower().removesuffix(".gz")).suffix)


def names_file(name: str) -> bool:
    """Return whether a name has a file's extension, so it cannot be a dataset on the Hub."""
    return kind_of(name) is not None or PurePath(name.lower()).suffix in _OTHER_FILES


def open_file(path: Path, index_folder: Path | None = None) -> RowSource:
    """Open one regular file by its content; the folder, if there is one, keeps indexes of rows.

    Raises:
        DatasetError: If it cannot be read, or holds no rows.
    """
    with open_regular(path) as file:
        start = file.read(_MAGIC_BYTES)
    kind = _binary_kind(start)
    if kind is not None:
        return kind(path)
    kind = _binary_kind(gzipped_start(path, _MAGIC_BYTES))
    if kind is not None:
        unpacked = UnpackedFile(path)
        try:
            return kind(path, unpacked)
        except DatasetError:
            unpacked.remove()
            raise
    stream = TextStream(path)  # raises where the content shows what the file is instead
    kind_by_name = kind_of(path.name)
    if kind_by_name in _BINARY_KINDS:
        raise DatasetError(
            f"{shown_name(path.name)} is not a {kind_by_name.label} file, despite its extension.",
            "Choose the right file.",
        )
    head = stream.head().lstrip()
    if not head:
        raise DatasetError(f"{shown_name(path.name)} is empty.", "Choose a file with rows in it.")
    kinds = [kind for kind in _TEXT_KINDS if kind is kind_by_name and kind.trusts_ending]
    readers = (kind.recognize(TextStart(stream, head, kind_by_name)) for kind in kinds or _TEXT_KINDS)
    return TextFileRows(stream, next(reader for reader in readers if reader is not None), index_folder)


def _binary_kind(start: bytes) -> type[BinaryRows] | None:
    return next((kind for kind in _BINARY_KINDS if start.startswith(kind.magics)), None)
