"""The data formats, one object each, and which of them a dataset has. To add a format, write its module and name it here."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from engine.config.run import DataFormatName, DatasetConfig
from engine.data.conversation import Conversation, Example
from engine.data.formats.alpaca import ALPACA
from engine.data.formats.base import TURN_FIELDS, Cells, DataFormat, Detection, Table
from engine.data.formats.conversations import MESSAGES, SHAREGPT
from engine.data.formats.prompt_completion import PROMPT_COMPLETION
from engine.data.formats.text import TEXT
from engine.data.formats.turns import are_single_turns, turn_list
from engine.data.records import RowProblemError
from engine.errors import DatasetError

FORMATS: dict[str, DataFormat] = {
    format_.name: format_ for format_ in (ALPACA, SHAREGPT, MESSAGES, PROMPT_COMPLETION, TEXT)
}


class Converter:
    """Reads rows in the format that was detected.

    Args:
        detection: The format and the columns that hold it.
    """

    def __init__(self, detection: Detection) -> None:
        self._format = FORMATS[detection.format]
        self._cells = Cells(dict(detection.columns))

    def convert(self, value: Mapping[str, Any]) -> Example:
        """Read one row.

        Raises:
            RowProblemError: With the reason why it cannot be trained on.
        """
        self._cells.value = value
        example = self._format.convert(self._cells)
        if isinstance(example, Conversation):
            answers = [message for message in example.messages if message.role == "assistant"]
            if not answers:
                raise RowProblemError("no_assistant_turn", "it has no assistant turn")
            if all(message.is_empty for message in answers):
                raise RowProblemError("empty", "the answer is empty")
        return example


def detect_format(config: DatasetConfig, rows: Sequence[Mapping[str, Any]]) -> Detection:
    """Decide the format from the first rows, or take the one that the person chose.

    Args:
        config: `format` and `column_map` override what is seen.
        rows: The first rows that could be read.

    Raises:
        DatasetError: If no format fits; names the columns that are there.
    """
    names = _column_names(rows)
    mapped = dict(config.column_map)
    if config.format != "auto":
        return _chosen(FORMATS[config.format], names, mapped, "chosen by you")
    if mapped and not any(mapped.values()):  # only leaves columns out
        seen = detect_format(config.model_copy(update={"column_map": {}}), rows)
        return _chosen(FORMATS[seen.format], names, {**seen.columns, **mapped}, seen.reason)
    if mapped:
        return _from_mapping(names, mapped)
    table = Table(_exact_and_plain(names), rows)
    candidates = [candidate for format_ in FORMATS.values() for candidate in format_.detect(table)]
    candidates.sort(key=lambda candidate: candidate.evidence)
    if candidates:
        # Of equals, the one that the first row has; then the first.
        best = max(candidates, key=lambda candidate: (_fitting(candidate, rows), _fitting(candidate, rows[:1])))
        count = _fitting(best, rows)
        share = "every row has" if count == len(rows) else f"{count} of the first {len(rows)} rows have"
        return replace(best, reason=f"{share} {best.reason}", sure=best.sure and count * 2 > len(rows))
    if are_single_turns(table.names, rows):
        raise DatasetError(
            "Each row is a single turn with its role and content, not a conversation.",
            "Put the turns of each conversation into one row, as a list in a column named messages.",
        )
    raise DatasetError(
        f"No format fits the columns {_listed(names)}.",
        "Say which column is which; in a terminal, for example, --map instruction=question --map output=answer.",
    )


def likeliest_format(config: DatasetConfig, rows: Sequence[Mapping[str, Any]]) -> DataFormatName:
    """Return the format to begin with where none fits.

    The chosen one; else that of which most is there, or mapped already.
    """
    if config.format != "auto":
        return config.format
    names = _column_names(rows)
    plain = {_plain(name) for name in names}
    known = {
        format_.name: sum(
            column.role in plain or bool(config.column_map.get(column.role)) for column in format_.columns
        )
        for format_ in FORMATS.values()
    }
    best = max(known, key=lambda name: known[name])
    if known[best]:
        return best
    lists = (turns for row in rows for value in row.values() if (turns := turn_list(value)) is not None)
    turns = next(lists, None)
    if turns is not None:
        return (SHAREGPT if SHAREGPT.fits(turns) else MESSAGES).name
    return (PROMPT_COMPLETION if len(names) > 1 else TEXT).name


def _column_names(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    names: dict[str, None] = {}
    for row in rows:
        names.update(dict.fromkeys(row))
    return list(names)


def _plain(name: str) -> str:
    return name.strip().lower()


def _exact_and_plain(names: Sequence[str]) -> dict[str, str]:
    return {_plain(name): name for name in reversed(names)} | {name: name for name in names}


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name[:40]) for name in names[:12])
    return shown + (" …" if len(names) > 12 else "") if names else "(none)"


def _fitting(detection: Detection, rows: Sequence[Mapping[str, Any]]) -> int:
    """Return how many rows have the columns that the format needs."""
    needed = [detection.columns[role] for role in FORMATS[detection.format].required]
    return sum(all(name in row for name in needed) for row in rows)


def _from_mapping(names: Sequence[str], mapped: Mapping[str, str]) -> Detection:
    for format_ in FORMATS.values():
        required = set(format_.required)
        if required <= set(mapped) | set(names) and required & set(mapped):
            return _chosen(format_, names, mapped, f"your mapping names the columns of {_words(format_)}")
    known = sorted({column.role for format_ in FORMATS.values() for column in format_.columns})
    raise DatasetError(
        f"The mapping of {_listed(list(mapped))} makes no format complete.",
        f"Map to the columns of one format; the names to map are {', '.join(known)}.",
    )


def _chosen(format_: DataFormat, names: Sequence[str], mapped: Mapping[str, str], reason: str) -> Detection:
    roles = {column.role for column in format_.columns} | set(TURN_FIELDS)
    unknown = [role for role in mapped if role not in roles]
    if unknown:
        raise DatasetError(
            f"The mapping names {_listed(unknown)}, which {_words(format_)} does not have.",
            f"Map {', '.join(column.role for column in format_.columns)}.",
        )
    named = [column for role, column in mapped.items() if role not in TURN_FIELDS and column]
    absent = [column for column in named if column not in names]
    if absent:
        raise DatasetError(
            f"The mapping names the column {_listed(absent)}; this dataset has {_listed(names)}.",
            "Correct the name, which must be exact.",
        )
    found = _exact_and_plain(names)
    columns = {column.role: found[column.role] for column in format_.columns if column.role in found}
    # A role that is mapped to no column at all is left out, whatever the names of the columns.
    columns = {role: column for role, column in (columns | dict(mapped)).items() if column}
    missing = [role for role in format_.required if role not in columns]
    if missing:
        raise DatasetError(
            f"{_words(format_).capitalize()} needs the column {_listed(missing)}; this dataset has {_listed(names)}.",
            f"Say which column it is; in a terminal, for example, --map {missing[0]}={names[0] if names else 'name'}.",
        )
    return Detection(format_.name, reason, columns)


def _words(format_: DataFormat) -> str:
    return format_.name.replace("_", " ")
