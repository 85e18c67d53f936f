"""Columns whose text the conversion leaves out although the rest of the row does not repeat it."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from engine.data.files.access import shown_name
from engine.data.formats import FORMATS
from engine.data.formats.base import TURN_FIELDS, Detection
from engine.data.formats.columns import ANSWER_NAMES, MATERIAL_NAMES, SYSTEM_NAMES, plain_text
from engine.data.formats.turns import is_turn, turn_list

_ROLES = frozenset(column.role for format_ in FORMATS.values() for column in format_.columns)

_TELLING = (
    _ROLES
    | {*SYSTEM_NAMES, *MATERIAL_NAMES, *ANSWER_NAMES}
    | {name for names in ANSWER_NAMES.values() for name in names}
)

# Words in the names of columns that describe a row and are not part of it.
_ABOUT_ROWS = frozenset(
    """
    id ids uid uuid guid idx index key hash md5 sha sha1 sha256 url urls uri link links source sources origin src
    provenance path file filename folder category categories topic topics subject tag tags label labels class type
    kind task tasks domain field genre score scores rating rank quality reward likes votes count length tokens
    difficulty level lang langs language languages locale country license licence date time timestamp created
    updated modified year model models engine generator annotator worker author user username name title split
    subset dataset datasets config version status flag license doi email
    """.split()
)

_CONTENT_FIELDS = ("content", "value", "text")  # of a turn, or of a part of one
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_NAMED = 8
_PROSE_WORDS = 3
_LONG_PROSE_WORDS = 20  # no title, category or source is as long as that
_PROSE_CHARACTERS = 8  # of scripts that put no spaces between words


def unread_columns(
    detection: Detection, column_map: Mapping[str, str], rows: Sequence[Mapping[str, Any]]
) -> tuple[str, ...]:
    """Return the columns of text that the conversion leaves alone, in their order.

    Ids, categories, links and the like are none, nor is what repeats the text that is read.

    Args:
        detection: How rows are read.
        column_map: Roles that a person mapped to no column are left out on purpose.
        rows: The first rows.
    """
    used = {column for role, column in detection.columns.items() if role not in TURN_FIELDS}
    on_purpose = {role for role, column in column_map.items() if not column}
    names = [name for name in dict.fromkeys(name for row in rows for name in row) if name not in used]
    names = [name for name in names if _plain(name) not in on_purpose and _says_something(name, rows)]
    return tuple(name for name in names if not _is_told_already(name, used, rows))


def unread_note(columns: Sequence[str], where: str = "") -> str:
    """Return a note about such columns; `where` names their source, such as " of rows.csv"."""
    named = ", ".join(shown_name(column, 40) for column in columns[:_NAMED])
    more = f" and {len(columns) - _NAMED:,} more" if len(columns) > _NAMED else ""
    noun = "columns" if len(columns) > 1 else "column"
    return f"The text in the {noun} {named}{more}{where} is not read. A column mapping can give it a role."


def _plain(name: str) -> str:
    return name.strip().lower()


def _says_something(name: str, rows: Sequence[Mapping[str, Any]]) -> bool:
    values = [row.get(name) for row in rows]
    if _plain(name) in _TELLING:
        return any(True for value in values for _ in _texts(value))
    is_about_rows = any(word.lower() in _ABOUT_ROWS for word in _WORD.findall(name))
    words = _LONG_PROSE_WORDS if is_about_rows else _PROSE_WORDS
    return any(_is_prose(text, words) for value in values if _is_text(value) for text in _texts(value))


def _is_text(value: Any) -> bool:
    if isinstance(value, list):
        return all(isinstance(item, str) for item in value) or is_turn(value[0])
    return isinstance(value, str) and (not value.lstrip().startswith(("{", "[")) or turn_list(value) is not None)


def _is_prose(text: str, words: int) -> bool:
    return len(text.split()) >= words or (not text.isascii() and len(text) >= _PROSE_CHARACTERS)


def _is_told_already(name: str, used: set[str], rows: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether in every row the column is a part of what is read, or holds all of it, as a rendered prompt does."""
    for row in rows:
        texts = [plain_text(text) for text in _texts(row.get(name))]
        read = [plain_text(text) for column in used for text in _texts(row.get(column))]
        whole = " ".join(read)
        if texts and not all(text in whole for text in texts) and not _holds_all(" ".join(texts), read):
            return False
    return True


def _holds_all(text: str, parts: Sequence[str]) -> bool:
    return bool(parts) and all(part in text for part in parts)


def _texts(value: Any) -> Iterator[str]:
    """Yield the texts of a cell: text, the content of turns, the texts of a list or an object."""
    if isinstance(value, str) and (turns := turn_list(value)) is not None:
        value = turns
    if isinstance(value, str):
        if value.strip():
            yield value
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, Mapping):
        contents = [value[name] for name in _CONTENT_FIELDS if name in value]
        for item in contents or value.values():
            yield from _texts(item)
