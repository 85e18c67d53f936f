"""The data formats, one object each: which of them a dataset has, and which of its columns that one leaves unread.

To add a format, write its module and name it here.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from loratory.engine.config.objectives import OBJECTIVES, ROW_KINDS, Objective
from loratory.engine.config.run import DataFormatName, DatasetConfig, TurnRole
from loratory.engine.data.conversation import Conversation, Example
from loratory.engine.data.files.access import shown_name
from loratory.engine.data.formats.base import IMAGES, SYSTEM_NAMES, TURN_FIELDS, Cells, DataFormat, Detection, Table
from loratory.engine.data.formats.conversations import CAPTIONS, MESSAGES, SHAREGPT, TEXT
from loratory.engine.data.formats.images import IMAGE_NAMES, Load, holds_bytes, is_image
from loratory.engine.data.formats.pairs import ALPACA, ANSWER_NAMES, MATERIAL_NAMES, PROMPT_COMPLETION, single_spaced
from loratory.engine.data.formats.preferences import FORMATS_OF_PREFERENCES
from loratory.engine.data.formats.prompts import PROMPTS
from loratory.engine.data.formats.turns import are_single_turns, is_turn, turn_list
from loratory.engine.data.records import RowProblemError
from loratory.engine.errors import DatasetError

FORMATS: dict[str, DataFormat] = {
    format_.name: format_
    for format_ in (ALPACA, SHAREGPT, MESSAGES, PROMPT_COMPLETION, TEXT, *FORMATS_OF_PREFERENCES, PROMPTS, CAPTIONS)
}
_ROLES = frozenset(column.role for format_ in FORMATS.values() for column in format_.columns)

# Names of columns that hold a part of the row, with any content; a label is mostly the class of a row.
_CONTENT_NAMES = (_ROLES - {"label"}).union(SYSTEM_NAMES, MATERIAL_NAMES, ANSWER_NAMES, *ANSWER_NAMES.values())

# Words in the names of columns that describe a row and are not part of it.
_METADATA_WORDS = frozenset(
    """
    id ids uid uuid guid idx index key hash md5 sha sha1 sha256 url urls uri link links source sources origin src
    provenance path file filename folder category categories topic topics subject tag tags label labels class type
    kind task tasks domain field genre score scores rating rank quality reward likes votes count length tokens
    difficulty level lang langs language languages locale country license licence date time timestamp created
    updated modified year model models engine generator annotator worker author user username name title split
    subset dataset datasets config version status flag license doi email
    """.split()
)

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")


class Converter:
    """Reads rows in the format that was detected."""

    def __init__(
        self, detection: Detection, role_map: Mapping[str, TurnRole] = {}, load_image: Load | None = None
    ) -> None:
        self._format = FORMATS[detection.format]
        self._cells = Cells(dict(detection.columns), role_map, load_image)
        self.fields = self._cells.fields  # of turns

    def convert(self, value: Mapping[str, Any]) -> Example:
        """Read one row.

        Raises:
            RowProblemError: With the reason why it cannot be trained on.
        """
        self._cells.value = value
        example = self._format.convert(self._cells)
        if not isinstance(example, Conversation):
            return example
        example = self._cells.with_images(example)
        if example.kind != "prompts":
            answers = [message for message in example.messages if message.role == "assistant"]
            if not answers:
                raise RowProblemError("no_assistant_turn", "it has no assistant turn")
            if all(message.is_empty for message in answers):
                raise RowProblemError("empty", "the answer is empty")
        return example


def detect_format(config: DatasetConfig, rows: Sequence[Mapping[str, Any]], *, unreadable: int = 0) -> Detection:
    """Decide the format from the first rows; `format` and `column_map` of the config override what is seen.

    The reason counts the `unreadable` ones among them too.

    Raises:
        DatasetError: If no format fits; names the columns that are there.
    """
    names = column_names(rows)
    mapping = dict(config.column_map)
    if config.format != "auto":
        return _detection_of(FORMATS[config.format], names, mapping, "chosen by you")
    if mapping and not any(column for role, column in mapping.items() if role != IMAGES.role):
        # Only leaves columns out, or names the one of images.
        automatic = detect_format(config.model_copy(update={"column_map": {}}), rows, unreadable=unreadable)
        return _detection_of(FORMATS[automatic.format], names, {**automatic.columns, **mapping}, automatic.reason)
    if mapping:
        return _from_mapping(names, mapping)
    table = Table(_exact_and_plain(names), rows)
    candidates = [candidate for format_ in FORMATS.values() for candidate in format_.detect(table)]
    candidates.sort(key=lambda candidate: candidate.evidence)
    if candidates:
        # Among equals, the format of the first row; then the first one.
        best = max(candidates, key=lambda candidate: (_fitting(candidate, rows), _fitting(candidate, rows[:1])))
        count, first = _fitting(best, rows), len(rows) + unreadable
        share = "every row has" if count == first else f"{count} of the first {first} rows have"
        return replace(best, reason=f"{share} {best.reason}", sure=best.sure and count * 2 > len(rows))
    if are_single_turns(table.names, rows):
        raise DatasetError(
            "Each row is a single turn with its role and content, not a conversation.",
            "Put the turns of each conversation into one row, as a list in a column named messages.",
        )
    raise DatasetError(
        f"No format fits the columns {_join_names(names)}.",
        "Map the columns, for example instruction=question and output=answer.",
    )


def require_rows_of(objective: Objective, formats: Iterable[DataFormatName], config: DatasetConfig) -> None:
    """Refuse rows that an objective cannot train on.

    Raises:
        DatasetError: If the format has other rows; names the objectives that can train on them.
    """
    for kind in (FORMATS[name].rows for name in formats):
        if kind not in objective.rows:
            fitting = " or ".join(other.name for other in OBJECTIVES.values() if kind in other.rows)
            raise DatasetError(
                f"{config.source} holds {ROW_KINDS[kind].content}; training.objective {objective.name} trains on "
                f"{' or '.join(ROW_KINDS[other_kind].content for other_kind in sorted(objective.rows))}.",
                f"Set training.objective to {fitting}, or choose other rows." if fitting else "Choose other rows.",
            )


def likeliest_format(config: DatasetConfig, rows: Sequence[Mapping[str, Any]]) -> DataFormatName:
    """Return the format to begin with where none fits.

    The chosen one; else that of which most is there, or mapped already.
    """
    if config.format != "auto":
        return config.format
    names = column_names(rows)
    plain = {_plain(name) for name in names}
    matches = {
        format_.name: sum(
            column.role in plain or bool(config.column_map.get(column.role)) for column in format_.columns
        )
        for format_ in FORMATS.values()
    }
    best = max(matches, key=lambda name: matches[name])
    if matches[best]:
        return best
    lists = (turns for row in rows for value in row.values() if (turns := turn_list(value)) is not None)
    turns = next(lists, None)
    if turns is not None:
        return (SHAREGPT if SHAREGPT.fits(turns) else MESSAGES).name
    return (PROMPT_COMPLETION if len(names) > 1 else TEXT).name


def column_names(rows: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Return the names of columns in the order in which they are seen."""
    return tuple(dict.fromkeys(name for row in rows for name in row))


def _plain(name: str) -> str:
    return name.strip().lower()


def _exact_and_plain(names: Sequence[str]) -> dict[str, str]:
    return {_plain(name): name for name in reversed(names)} | {name: name for name in names}


def _join_names(names: Sequence[str]) -> str:
    text = ", ".join(repr(name[:40]) for name in names[:12])
    return text + (" …" if len(names) > 12 else "") if names else "(none)"


def _fitting(detection: Detection, rows: Sequence[Mapping[str, Any]]) -> int:
    """Return how many rows have the columns that the format needs."""
    needed = [detection.columns[role] for role in FORMATS[detection.format].required]
    return sum(all(name in row for name in needed) for row in rows)


def _from_mapping(names: Sequence[str], mapping: Mapping[str, str]) -> Detection:
    for format_ in FORMATS.values():
        required = set(format_.required)
        if required <= set(mapping) | set(names) and required & set(mapping):
            return _detection_of(format_, names, mapping, f"your mapping names the columns of {_title(format_)}")
    raise DatasetError(
        f"The mapping of {_join_names(list(mapping))} makes no format complete.",
        f"Map to the columns of one format; the names to map are {', '.join(sorted(_ROLES))}.",
    )


def _detection_of(format_: DataFormat, names: Sequence[str], mapping: Mapping[str, str], reason: str) -> Detection:
    roles = {column.role for column in format_.columns} | set(TURN_FIELDS)
    unknown = [role for role in mapping if role not in roles]
    if unknown:
        raise DatasetError(
            f"The mapping names {_join_names(unknown)}, which {_title(format_)} does not have.",
            f"Map {', '.join(column.role for column in format_.columns)}.",
        )
    mapped_columns = [column for role, column in mapping.items() if role not in TURN_FIELDS and column]
    absent = [column for column in mapped_columns if column not in names]
    if absent:
        raise DatasetError(
            f"The mapping names the column {_join_names(absent)}; this dataset has {_join_names(names)}.",
            "Correct the name, which must be exact.",
        )
    exact_names = _exact_and_plain(names)
    exact_names.setdefault(IMAGES.role, exact_names.get("image", ""))
    columns = {column.role: exact_names[column.role] for column in format_.columns if column.role in exact_names}
    # A role that is mapped to no column is left out, even if a column has its name.
    columns = {role: column for role, column in (columns | dict(mapping)).items() if column}
    missing = [role for role in format_.required if role not in columns]
    if missing:
        raise DatasetError(
            f"{_title(format_).capitalize()} needs the column {_join_names(missing)}; this dataset has {_join_names(names)}.",
            f"Map its column, for example {missing[0]}={names[0] if names else 'name'}.",
        )
    return Detection(format_.name, reason, columns)


def _title(format_: DataFormat) -> str:
    return format_.name.replace("_", " ")


def unread_columns(
    detection: Detection, column_map: Mapping[str, str], rows: Sequence[Mapping[str, Any]]
) -> tuple[str, ...]:
    """Return the columns of text or images that the conversion does not read, in their order.

    Ids, categories, links and the like are none, nor is what repeats the text that is read. Roles that `column_map` maps
    to no column are left out on purpose.
    """
    read_columns = {column for role, column in detection.columns.items() if role not in TURN_FIELDS}
    on_purpose = {role for role, column in column_map.items() if not column}
    return tuple(
        name
        for name in column_names(rows)
        if name not in read_columns
        and _plain(name) not in on_purpose
        and _holds_content(name, rows)
        and not _repeats_read_text(name, read_columns, rows)
    )


def unread_note(columns: Sequence[str], where: str = "") -> str:
    """Return a note about such columns; `where` names their source, such as " of rows.csv"."""
    most = 8
    names = ", ".join(shown_name(column, 40) for column in columns[:most])
    more = f" and {len(columns) - most:,} more" if len(columns) > most else ""
    noun = "columns" if len(columns) > 1 else "column"
    return f"What is in the {noun} {names}{more}{where} is not read. A column mapping can give it a role."


def _holds_content(name: str, rows: Sequence[Mapping[str, Any]]) -> bool:
    values = [row.get(name) for row in rows]
    if any(map(is_image if _plain(name) in IMAGE_NAMES else holds_bytes, values)):
        return True
    if _plain(name) in _CONTENT_NAMES:
        return any(True for value in values for _ in _texts(value))
    is_metadata = any(word.lower() in _METADATA_WORDS for word in _WORD.findall(name))
    min_words = 20 if is_metadata else 3  # no title, category or source is as long as that
    return any(_is_prose(text, min_words) for value in values if _is_text(value) for text in _texts(value))


def _is_text(value: Any) -> bool:
    if isinstance(value, list):
        return all(isinstance(part, str) for part in value) or is_turn(value[0])
    return isinstance(value, str) and (not value.lstrip().startswith(("{", "[")) or turn_list(value) is not None)


def _is_prose(text: str, min_words: int) -> bool:
    """Return whether text has so many words, or some letters of a script that puts no spaces between words."""
    return len(text.split()) >= min_words or (not text.isascii() and len(text) >= 8)


def _repeats_read_text(name: str, used: set[str], rows: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether in every row the column is a part of what is read, or holds all of it, as a rendered prompt does."""
    for row in rows:
        texts = [single_spaced(text) for text in _texts(row.get(name))]
        read = [single_spaced(text) for column in used for text in _texts(row.get(column))]
        column_text, read_text = " ".join(texts), " ".join(read)
        is_part = all(text in read_text for text in texts)
        if not is_part and not (read and all(part in column_text for part in read)):
            return False
    return True


def _texts(value: Any) -> Iterator[str]:
    """Yield the texts of a cell: text, the content of turns, the texts of a list or an object."""
    if isinstance(value, str) and (turns := turn_list(value)) is not None:
        value = turns
    if isinstance(value, str):
        if value.strip():
            yield value
    elif isinstance(value, list):
        for part in value:
            yield from _texts(part)
    elif isinstance(value, Mapping):
        fields = ("content", "value", "text")  # of a turn, or a part of one
        for part in [value[name] for name in fields if name in value] or value.values():
            yield from _texts(part)
