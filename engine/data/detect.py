"""Which format a dataset has: looked up in its columns, and said with the reason."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from engine.config.dataset import DatasetConfig
from engine.errors import DatasetError

Format = Literal["alpaca", "sharegpt", "messages", "prompt_completion", "text"]


class Column(NamedTuple):
    """A column that a format knows."""

    role: str  # its name in the format, and on the left of a mapping
    required: bool
    about: str


FORMATS: dict[Format, tuple[Column, ...]] = {
    "alpaca": (
        Column("instruction", True, "what is asked"),
        Column("input", False, "more to the question"),
        Column("output", True, "the answer"),
        Column("system", False, "system prompt"),
        Column("history", False, "earlier question and answer pairs"),
    ),
    "sharegpt": (
        Column("conversations", True, "list of turns, each with from and value"),
        Column("system", False, "system prompt"),
        Column("tools", False, "functions that the assistant may call"),
    ),
    "messages": (
        Column("messages", True, "list of turns, each with role and content"),
        Column("system", False, "system prompt"),
        Column("tools", False, "functions that the assistant may call"),
    ),
    "prompt_completion": (
        Column("prompt", True, "what is asked: text, or a list of turns"),
        Column("completion", True, "the answer: text, or a list of turns"),
        Column("system", False, "system prompt"),
        Column("tools", False, "functions that the assistant may call"),
    ),
    "text": (Column("text", True, "plain text, all of which is learned"),),
}

# Names of a turn's own fields, which a mapping may rename as well.
TURN_FIELDS = ("from", "value", "role", "content")

# Pairs of columns that are a question and an answer under other names, in the order in which they are tried.
_QUESTION_ANSWER_NAMES = (
    ("prompt", "response"),
    ("prompt", "output"),
    ("prompt", "answer"),
    ("question", "answer"),
    ("question", "response"),
    ("query", "response"),
    ("query", "answer"),
    ("input", "output"),
    ("input", "response"),
    ("instruction", "response"),
    ("instruction", "answer"),
)


@dataclass(frozen=True)
class Detection:
    """How rows are read. `columns` maps the roles of the format to the names of this dataset's columns."""

    format: Format
    reason: str
    columns: Mapping[str, str]
    sure: bool = True  # False: a guess from names; the page then offers the mapping


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
        return _chosen(config.format, names, mapped, "chosen by you")
    if mapped and not any(mapped.values()):  # says only what to leave out
        seen = detect_format(config.model_copy(update={"column_map": {}}), rows)
        return _chosen(seen.format, names, {**seen.columns, **mapped}, seen.reason)
    if mapped:
        return _from_mapping(names, mapped)
    exact = {_plain(name): name for name in reversed(names)} | {name: name for name in names}
    candidates = [*_turn_lists(exact, rows), _alpaca(exact), _prompt_completion(exact), _text(exact, rows)]
    fits = [
        ((_fitting(candidate, rows), _fitting(candidate, rows[:1])), candidate)
        for candidate in candidates
        if candidate is not None
    ]
    if fits:
        # Of equals, the one that the first row has; then the first: formats are tried in the order of their detail.
        (count, _), best = max(fits, key=lambda fit: fit[0])
        share = "every row has" if count == len(rows) else f"{count} of the first {len(rows)} rows have"
        return replace(best, reason=f"{share} {best.reason}", sure=best.sure and count * 2 > len(rows))
    raise DatasetError(
        f"No format fits the columns {_listed(names)}.",
        "Say which column is which; in a terminal, for example, --map instruction=question --map output=answer.",
    )


def likeliest_format(config: DatasetConfig, rows: Sequence[Mapping[str, Any]]) -> Format:
    """The format to begin with where none fits: the chosen one, else that of which most is there or mapped already."""
    if config.format != "auto":
        return config.format
    names = _column_names(rows)
    plain = {_plain(name) for name in names}
    known = {
        format_: sum(column.role in plain or bool(config.column_map.get(column.role)) for column in columns)
        for format_, columns in FORMATS.items()
    }
    best = max(known, key=lambda format_: known[format_])
    if known[best]:
        return best
    lists = (value for row in rows for value in row.values() if _is_turn_list(value))
    fields = set(next(lists, [{}])[0])
    if fields:
        return "sharegpt" if "from" in fields or "value" in fields else "messages"
    return "prompt_completion" if len(names) > 1 else "text"


def _column_names(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    names: dict[str, None] = {}
    for row in rows:
        names.update(dict.fromkeys(row))
    return list(names)


def _plain(name: str) -> str:
    return name.strip().lower()


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name[:40]) for name in names[:12])
    return shown + (" …" if len(names) > 12 else "") if names else "(none)"


def _fitting(detection: Detection, rows: Sequence[Mapping[str, Any]]) -> int:
    """How many rows have the columns that the format needs."""
    needed = [detection.columns[column.role] for column in FORMATS[detection.format] if column.required]
    return sum(all(name in row for name in needed) for row in rows)


def _turn_lists(exact: Mapping[str, str], rows: Sequence[Mapping[str, Any]]) -> list[Detection]:
    found = []
    for names in (("conversations", "conversation"), ("messages", "message"), ("dialog", "dialogue")):
        name = next((exact[name] for name in names if name in exact), "")
        turns = next((row[name] for row in rows if _is_turn_list(row.get(name))), None)
        if turns is None:
            continue
        fields = set(turns[0])
        format_: Format = "sharegpt" if "from" in fields or "value" in fields else "messages"
        keys = "from and value" if format_ == "sharegpt" else "role and content"
        columns = {FORMATS[format_][0].role: name} | _optional(format_, exact)
        found.append(Detection(format_, f"a list {name} of {keys}", columns))
    return found


def _is_turn_list(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], Mapping)


def _alpaca(exact: Mapping[str, str]) -> Detection | None:
    if "instruction" not in exact or "output" not in exact:
        return None
    columns = {"instruction": exact["instruction"], "output": exact["output"]} | _optional("alpaca", exact)
    return Detection("alpaca", f"the columns {columns['instruction']} and {columns['output']}", columns)


def _prompt_completion(exact: Mapping[str, str]) -> Detection | None:
    if "prompt" in exact and "completion" in exact:
        columns = {"prompt": exact["prompt"], "completion": exact["completion"]}
        columns |= _optional("prompt_completion", exact)
        return Detection("prompt_completion", "the columns prompt and completion", columns)
    for question, answer in _QUESTION_ANSWER_NAMES:
        if question in exact and answer in exact:
            columns = {"prompt": exact[question], "completion": exact[answer]} | _optional("prompt_completion", exact)
            reason = f"the columns {exact[question]} and {exact[answer]}, which look like a question and its answer"
            return Detection("prompt_completion", reason, columns, sure=False)
    return None


def _text(exact: Mapping[str, str], rows: Sequence[Mapping[str, Any]]) -> Detection | None:
    name = exact.get("text") or exact.get("content")
    if name is not None:
        return Detection("text", f"the column {name}", {"text": name}, sure=name == "text")
    if len(set(exact.values())) == 1:
        name = next(iter(exact.values()))
        if all(isinstance(row.get(name), str) for row in rows):
            return Detection("text", f"the column {name} alone, and it holds text", {"text": name}, sure=False)
    return None


def _optional(format_: Format, exact: Mapping[str, str]) -> dict[str, str]:
    return {
        column.role: exact[column.role] for column in FORMATS[format_] if not column.required and column.role in exact
    }


def _from_mapping(names: Sequence[str], mapped: Mapping[str, str]) -> Detection:
    for format_, columns in FORMATS.items():
        required = {column.role for column in columns if column.required}
        given = set(mapped) | set(names)
        if required <= given and required & set(mapped):
            return _chosen(format_, names, mapped, f"your mapping names the columns of {format_.replace('_', ' ')}")
    known = sorted({column.role for columns in FORMATS.values() for column in columns})
    raise DatasetError(
        f"The mapping of {_listed(list(mapped))} makes no format complete.",
        f"Map to the columns of one format; the names to map are {', '.join(known)}.",
    )


def _chosen(format_: Format, names: Sequence[str], mapped: Mapping[str, str], reason: str) -> Detection:
    roles = {column.role for column in FORMATS[format_]} | set(TURN_FIELDS)
    unknown = [role for role in mapped if role not in roles]
    if unknown:
        raise DatasetError(
            f"The mapping names {_listed(unknown)}, which {format_.replace('_', ' ')} does not have.",
            f"Map {', '.join(column.role for column in FORMATS[format_])}.",
        )
    named = [column for role, column in mapped.items() if role not in TURN_FIELDS and column]
    absent = [column for column in named if column not in names]
    if absent:
        raise DatasetError(
            f"The mapping names the column {_listed(absent)}; this dataset has {_listed(names)}.",
            "Correct the name, which must be exact.",
        )
    plain = {_plain(name): name for name in reversed(names)} | {name: name for name in names}
    columns = {column.role: plain[column.role] for column in FORMATS[format_] if column.role in plain}
    # A role that is mapped to no column at all is left out, whatever the columns are called.
    columns = {role: column for role, column in (columns | dict(mapped)).items() if column}
    missing = [column.role for column in FORMATS[format_] if column.required and column.role not in columns]
    if missing:
        raise DatasetError(
            f"{format_.replace('_', ' ').capitalize()} needs the column {_listed(missing)}; "
            f"this dataset has {_listed(names)}.",
            f"Say which column it is; in a terminal, for example, --map {missing[0]}={names[0] if names else 'name'}.",
        )
    return Detection(format_, reason, columns)
