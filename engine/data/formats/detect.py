"""Which format a dataset has: looked up in its columns, and said with the reason."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from engine.config.dataset import DatasetConfig
from engine.data.formats.column_names import material_column, question_and_answer, system_column
from engine.data.formats.turns import begins_like_turns, is_turn, looks_like_turns, turn_list
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

# Who speaks in a turn, by which rows that are single turns are told from others.
_SPEAKERS = frozenset({"user", "assistant", "system", "human", "gpt", "tool"})

# Columns that may hold lists of turns without being the conversation.
_NO_CONVERSATION = frozenset({"history", "tools", "prompt", "completion"})


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
    candidates = [
        *_turn_lists(exact, rows),
        _alpaca(exact, rows),
        _prompt_completion(exact, rows),
        _question_and_answer(exact, rows),
        _only_turn_list(exact, rows),
        _text(exact, rows),
    ]
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
    _refuse_single_turns(exact, rows)
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
    lists = (turns for row in rows for value in row.values() if (turns := turn_list(value)) is not None)
    turns = next(lists, None)
    if turns is not None:
        return _format_of(turns)
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
        values = [row[name] for row in rows if name in row]
        turns = next((turns for value in values if (turns := turn_list(value)) is not None), None)
        if turns is not None:
            found.append(_detected_turns(name, turns, exact, rows))
        elif any(begins_like_turns(value) for value in values):
            # Text that only looks like JSON is no text to learn: each row then says what is wrong with it.
            found.append(Detection("messages", f"a list {name} that is no valid JSON", {"messages": name}, sure=False))
    return found


def _only_turn_list(exact: Mapping[str, str], rows: Sequence[Mapping[str, Any]]) -> Detection | None:
    """The one column that holds turns, under a name that nobody knows."""
    found = {}
    for plain, name in exact.items():
        turns = next((turns for row in rows if (turns := turn_list(row.get(name))) is not None), None)
        if plain not in _NO_CONVERSATION and turns is not None and is_turn(turns[0]):
            found[name] = turns
    if len(found) != 1:
        return None
    ((name, turns),) = found.items()
    return replace(_detected_turns(name, turns, exact, rows), sure=False)


def _detected_turns(
    name: str, turns: Sequence[Any], exact: Mapping[str, str], rows: Sequence[Mapping[str, Any]]
) -> Detection:
    format_ = _format_of(turns)
    keys = "from and value" if format_ == "sharegpt" else "role and content"
    return _with_optional(Detection(format_, f"a list {name} of {keys}", {FORMATS[format_][0].role: name}), exact, rows)


def _format_of(turns: Sequence[Any]) -> Format:
    fields = set(turns[0])
    return "sharegpt" if "from" in fields or "value" in fields else "messages"


def _alpaca(exact: Mapping[str, str], rows: Sequence[Mapping[str, Any]]) -> Detection | None:
    if "instruction" not in exact or "output" not in exact:
        return None
    columns = {"instruction": exact["instruction"], "output": exact["output"]}
    reason = f"the columns {columns['instruction']} and {columns['output']}"
    return _with_optional(Detection("alpaca", reason, columns), exact, rows)


def _prompt_completion(exact: Mapping[str, str], rows: Sequence[Mapping[str, Any]]) -> Detection | None:
    if "prompt" not in exact or "completion" not in exact:
        return None
    columns = {"prompt": exact["prompt"], "completion": exact["completion"]}
    guess = _question_and_answer(exact, rows)
    if guess is not None and guess.format == "alpaca":
        return None  # there is more to the question than the prompt says
    return _with_optional(Detection("prompt_completion", "the columns prompt and completion", columns), exact, rows)


def _question_and_answer(exact: Mapping[str, str], rows: Sequence[Mapping[str, Any]]) -> Detection | None:
    """Two columns that are a question and an answer by their names; with more to the question, Alpaca."""
    pair = question_and_answer(exact, rows)
    if pair is None:
        return None
    question, answer = pair
    reason = f"the columns {question} and {answer}, which look like a question and its answer"
    if question == exact.get("instruction") or material_column(question, exact, rows) is not None:
        found = Detection("alpaca", reason, {"instruction": question, "output": answer}, sure=False)
    else:
        found = Detection("prompt_completion", reason, {"prompt": question, "completion": answer}, sure=False)
    return _with_optional(found, exact, rows)


def _text(exact: Mapping[str, str], rows: Sequence[Mapping[str, Any]]) -> Detection | None:
    if "text" in exact:
        return Detection("text", f"the column {exact['text']}", {"text": exact["text"]}, sure=exact["text"] == "text")
    if "content" in exact and not _are_single_turns(exact, rows):
        return Detection("text", f"the column {exact['content']}", {"text": exact["content"]}, sure=False)
    if len(set(exact.values())) == 1:
        name = next(iter(exact.values()))
        values = [row.get(name) for row in rows]
        if all(isinstance(value, str) for value in values) and not any(map(looks_like_turns, values)):
            return Detection("text", f"the column {name} alone, and it holds text", {"text": name}, sure=False)
    return None


def _are_single_turns(exact: Mapping[str, str], rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether each row is one turn of a conversation that nobody put together."""
    speaker = exact.get("role") or exact.get("from")
    is_said = "content" in exact or "value" in exact
    said = [row.get(speaker) for row in rows] if speaker is not None and is_said else []
    return bool(said) and all(isinstance(role, str) and role.strip().lower() in _SPEAKERS for role in said)


def _refuse_single_turns(exact: Mapping[str, str], rows: Sequence[Mapping[str, Any]]) -> None:
    if _are_single_turns(exact, rows):
        raise DatasetError(
            "Each row is a single turn, with who speaks and what is said, and no conversation.",
            "Put the turns of each conversation into one row, as a list in a column named messages.",
        )


def _with_optional(found: Detection, exact: Mapping[str, str], rows: Sequence[Mapping[str, Any]]) -> Detection:
    """Add the columns that the format may have beside those that it needs; those under other names are a guess."""
    columns = dict(found.columns)
    guessed = []
    for column in FORMATS[found.format]:
        if column.role in columns:
            continue
        name = exact.get(column.role)
        name = None if name in columns.values() else name  # such as the question, which an input may be
        if name is None and column.role == "input":
            name = material_column(columns["instruction"], exact, rows)
        elif name is None and column.role == "system":
            name = _system_column(found, exact, rows)
        if name is not None:
            columns[column.role] = name
            guessed += [f"{name} is read as {column.role}"] if name != exact.get(column.role) else []
    reason = "; ".join([found.reason, *guessed])
    return replace(found, columns=columns, reason=reason, sure=found.sure and not guessed)


def _system_column(found: Detection, exact: Mapping[str, str], rows: Sequence[Mapping[str, Any]]) -> str | None:
    """A column of system prompts, unless the conversations already begin with them."""
    talks = (turn_list(row.get(column)) or [{}] for row in rows for column in found.columns.values())
    if any(turns[0].get("role", turns[0].get("from")) == "system" for turns in talks):
        return None
    return system_column(exact, rows)


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
