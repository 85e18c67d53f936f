"""The one table of file endings: what each is read as, and which names can only be those of files."""

from collections.abc import Mapping
from pathlib import PurePath
from typing import Literal

EndingFamily = Literal["json", "json_lines", "delimited", "text", "parquet"]

# A new kind of file needs one line here.
_FAMILIES: Mapping[str, EndingFamily] = {
    ".json": "json",
    ".jsonl": "json_lines",
    ".jsonlines": "json_lines",
    ".ndjson": "json_lines",
    ".csv": "delimited",
    ".tab": "delimited",
    ".tsv": "delimited",
    ".txt": "text",
    ".text": "text",
    ".md": "text",
    ".parquet": "parquet",
}

# Files that are named by mistake: not read, and not a dataset on the Hub either.
_OTHER_FILES = frozenset(
    ".7z .arrow .bin .bz2 .db .doc .docx .feather .gguf .gz .h5 .html .ipynb .npy .npz .ods .odt .orc .pdf .pickle .pkl "
    ".pt .rtf .safetensors .sqlite .tar .tgz .xls .xlsx .xml .xz .yaml .yml .zip .zst".split()
)

DATA_ENDINGS = tuple(sorted(_FAMILIES))


def family_of(name: str) -> EndingFamily | None:
    """Return what a file of this name is read as, also where it is gzipped; None where the ending says nothing."""
    return _FAMILIES.get(PurePath(name.lower().removesuffix(".gz")).suffix)


def names_file(name: str) -> bool:
    """Return whether a name ends as only files do, and so means no dataset on the Hub."""
    return family_of(name) is not None or PurePath(name.lower()).suffix in _OTHER_FILES
