"""The part of a stand-alone script that reads the rows and says what they hold: only what this dataset needs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from engine.config.run import RunConfig
from engine.data.formats.base import TURN_FIELDS
from engine.data.formats.turns import ROLES
from engine.export.script.text import literal

FileKind = Literal["json_lines", "json_array", "delimited", "lines", "paragraphs", "parquet", "hub"]

# Python's csv module takes no longer cell unless it is told to.
LONGEST_CELL_BYTES = 131_072


@dataclass(frozen=True)
class DataFacts:
    """What a look at the rows told.

    Attributes:
        columns: Of the format's roles.
        fingerprint: Sha256 over what the rows say that are not left out, in order.
        files: To read; empty for the Hub.
        gzip: Whether the files are packed.
        has_long_rows: Whether a row may hold a longer cell than Python's csv module takes by itself.
        has_media: Whether the rows have columns with pictures or sound, which are not read.
        tags: Names of the roles that turns have, as the rows spell them.
        turn_fields: Where a turn has its role and its words.
        turn_columns: Columns that hold lists of turns.
        left_out: Numbers of rows that were left out, from 0; they cannot be read or hold nothing to learn.
        json_columns: Columns whose lists may stand as JSON in a text.
        has_list_rows: Whether a row may be nothing but a list of turns.
        has_system: Whether any row has a system turn.
        has_later_system: Whether any row has one behind its first turn.
        has_repeated_roles: Whether two turns of one role may follow each other.
        has_parts: Whether the words of a turn may be a list of parts.
        has_reasoning: Whether answers may hold reasoning.
        has_reasoning_fields: Whether turns may have their reasoning in a field of its own.
        has_empty_answers: Whether an assistant's turn may say nothing.
        opens_with_answer: Whether an assistant may speak first.
        most_answers: The most assistant's turns of one row.
        has_duplicates: Whether some rows say the same.
        can_hold_out: Whether rows can be held out, as they cannot where all say the same.
        held_out_draw: Whether there are so many held-out rows that only some of them are measured.
    """

    kind: FileKind
    format: str
    columns: Mapping[str, str]
    fingerprint: str = ""
    files: tuple[str, ...] = ()
    encoding: str = "utf-8-sig"
    delimiter: str = ","
    gzip: bool = False
    has_long_rows: bool = False
    has_media: bool = False
    tags: tuple[str, ...] = ()
    turn_fields: tuple[str, str] = ("role", "content")
    turn_columns: tuple[str, ...] = ()
    left_out: tuple[int, ...] = ()
    json_columns: tuple[str, ...] = ()
    has_list_rows: bool = False
    has_system: bool = False
    has_later_system: bool = False
    has_repeated_roles: bool = False
    has_parts: bool = False
    has_reasoning: bool = False
    has_reasoning_fields: bool = False
    has_empty_answers: bool = False
    opens_with_answer: bool = False
    most_answers: int = 1
    has_duplicates: bool = False
    can_hold_out: bool = True
    held_out_draw: bool = False

    @property
    def marks_completion(self) -> bool:
        """Whether turns of a completion carry a mark, because their place alone does not tell them."""
        return self.format == "prompt_completion" and bool(self.turn_columns)


def rows_code(config: RunConfig, facts: DataFacts) -> str:
    """`read_rows`, `conversation` where rows are conversations, `digest` and `fingerprint`."""
    pieces = [_reading(config, facts), _conversation(facts) if facts.format != "text" else "", _digest(facts)]
    return "\n\n".join(piece.strip("\n") + "\n" for piece in pieces if piece)


def _reading(config: RunConfig, facts: DataFacts) -> str:
    if facts.kind == "hub":
        dataset = config.dataset
        asked = ["name"]
        asked += [literal(dataset.subset)] if dataset.subset else []
        asked += [f"split={literal(dataset.split)}"]
        asked += [f"revision={literal(dataset.revision)}"] if dataset.revision else []
        read = [name for role, name in facts.columns.items() if role not in TURN_FIELDS]
        chosen = f".select_columns({literal(list(dict.fromkeys(read)))})" if facts.has_media else ""
        return f'''
def read_rows(name):
    """Rows of a dataset on the Hub."""
    return load_dataset({", ".join(asked)}){chosen}
'''
    if facts.kind == "parquet":
        return '''
def read_rows(files):
    """Rows of Parquet files, in order."""
    for path in files:
        for batch in ParquetFile(path).iter_batches():
            yield from batch.to_pylist()
'''
    # Lines end at line feeds alone, so that other line ends inside a text do no harm; a table has its own rules.
    line_ends = ', newline=""' if facts.kind == "delimited" else ', newline="\\n"'
    # What cannot be decoded is in rows that are left out.
    errors = ', errors="replace"' if facts.left_out else ""
    opened = (
        f'gzip.open(path, "rt", encoding="{facts.encoding}"{errors}{line_ends})'
        if facts.gzip
        else f'open(path, encoding="{facts.encoding}"{errors}{line_ends})'
    )
    lines = {
        "json_lines": _NUMBERED_LINES if facts.left_out else _JSON_LINES,
        "json_array": ["yield from json.load(file)"],
        "delimited": _TABLE,
        "lines": ['yield from ({"text": line.rstrip("\\r\\n")} for line in file if line.strip())'],
        "paragraphs": _PARAGRAPHS,
    }[facts.kind]
    body = "\n            ".join(lines).replace("$DELIMITER", literal(facts.delimiter))
    limit = "csv.field_size_limit(8 << 20)\n\n\n" if facts.kind == "delimited" and facts.has_long_rows else ""
    number = "    number = -1\n" if "number += 1" in body else ""
    return f'''
{limit}def read_rows(files):
    """Rows of the files, in order."""
{number}    for path in files:
        with {opened} as file:
            {body}
'''


_JSON_LINES = ["yield from (json.loads(line) for line in file if line.strip())"]

_NUMBERED_LINES = [
    "for line in filter(str.strip, file):",
    "    number += 1",
    "    yield None if number in LEFT_OUT else json.loads(line)",
]

_TABLE = [
    "rows = (row for row in csv.reader(file, delimiter=$DELIMITER) if $DELIMITER.join(row).strip())",
    "names = [name.strip() for name in next(rows)]",
    "yield from (dict(zip(names, row)) for row in rows)",
]

_PARAGRAPHS = [
    "for has_words, lines in itertools.groupby(file, key=lambda line: bool(line.strip())):",
    "    if has_words:",
    '        text = "".join(lines).removesuffix("\\n").replace("\\r\\n", "\\n").rstrip("\\r")',
    '        yield {"text": text}',
]


def _conversation(facts: DataFacts) -> str:
    lines = {"alpaca": _alpaca_lines, "prompt_completion": _prompt_lines}.get(facts.format, _messages_lines)(facts)
    columns = facts.columns
    if facts.has_system and "system" in columns:
        lines += [f'system = row.get({literal(columns["system"])}) or ""', "if system.strip():"]
        insert = 'messages.insert(0, {"role": "system", "content": system})'
        if any(ROLES[tag] == "system" for tag in facts.tags):
            lines += [
                '    if messages[0]["role"] == "system":',
                '        messages[0] = {"role": "system", "content": f"{system}\\n\\n{messages[0][\'content\']}"}',
                "    else:",
                f"        {insert}",
            ]
        else:
            lines.append(f"    {insert}")
    pieces = []
    if facts.tags:
        pieces.append(f"ROLES = {literal({tag: ROLES[tag] for tag in facts.tags})}")
    if facts.json_columns:
        pieces.append(_PARSED)
    if facts.has_parts:
        pieces.append(_PARTS)
    if facts.has_reasoning:
        pieces.append(_ANSWER)
    if facts.tags:
        pieces.append(_turns(facts))
    body = "\n    ".join([*lines, "return messages"])
    pieces.append(f'def conversation(row):\n    """One row as chat messages."""\n    {body}\n')
    return "\n\n\n".join(piece.strip("\n") for piece in pieces)


def _answer(facts: DataFacts, words: str) -> str:
    return f"answer({words})" if facts.has_reasoning else f'{{"role": "assistant", "content": {words}}}'


def _alpaca_lines(facts: DataFacts) -> list[str]:
    columns = facts.columns
    lines = [f"question = row[{literal(columns['instruction'])}]"]
    if "input" in columns:
        parts = f'(row[{literal(columns["instruction"])}], row.get({literal(columns["input"])}) or "")'
        lines = [f'question = "\\n\\n".join(part for part in {parts} if part.strip())']
    answer = _answer(facts, f"row[{literal(columns['output'])}]")
    last = f'[{{"role": "user", "content": question}}, {answer}]'
    if "history" not in columns:
        return [*lines, f"messages = {last}"]
    return [
        *lines,
        "messages = []",
        f"for asked, answered in {_list_in(facts, columns['history'], optional=True)}:",
        f'    messages += [{{"role": "user", "content": asked}}, {_answer(facts, "answered")}]',
        f"messages += {last}",
    ]


def _prompt_lines(facts: DataFacts) -> list[str]:
    prompt, completion = (f"row[{literal(facts.columns[role])}]" for role in ("prompt", "completion"))
    asked = f'{{"role": "user", "content": {prompt}}}'
    answered = _answer(facts, completion)
    if not facts.marks_completion:
        return ["messages = [", f"    {asked},", f"    {answered},", "]"]
    prompt_turns, completion_turns = (_list_in(facts, facts.columns[role]) for role in ("prompt", "completion"))
    asks_turns, answers_turns = (facts.columns[role] in facts.turn_columns for role in ("prompt", "completion"))
    return [
        f"messages = {f'turns_of({prompt_turns})' if asks_turns else f'[{asked}]'}",
        f"completion = {f'turns_of({completion_turns})' if answers_turns else f'[{answered}]'}",
        'messages += [{**message, "completion": True} for message in completion]',
    ]


def _messages_lines(facts: DataFacts) -> list[str]:
    turns = _list_in(facts, facts.columns["conversations" if facts.format == "sharegpt" else "messages"])
    return [f"messages = turns_of({f'row if isinstance(row, list) else {turns}' if facts.has_list_rows else turns})"]


def _list_in(facts: DataFacts, column: str, *, optional: bool = False) -> str:
    if column in facts.json_columns:
        return f'parsed(row.get({literal(column)}) or "[]")' if optional else f"parsed(row[{literal(column)}])"
    return f"row.get({literal(column)}) or []" if optional else f"row[{literal(column)}]"


def _turns(facts: DataFacts) -> str:
    role, content = facts.turn_fields
    said = f'turn.get({literal(content)}) or ""' if facts.has_reasoning_fields else f"turn[{literal(content)}]"
    said = f"text_of({said})" if facts.has_parts else said
    tag = f"ROLES[turn[{literal(role)}].strip().lower()]"
    if not facts.has_reasoning:
        return f'''
def turns_of(turns):
    """The turns of a row as chat messages."""
    return [{{"role": {tag}, "content": {said}}} for turn in turns]
'''
    return f'''
def turns_of(turns):
    """The turns of a row as chat messages."""
    messages = []
    for turn in turns:
        role, words = {tag}, {said}
        messages.append(answer(words) if role == "assistant" else {{"role": role, "content": words}})
{_REASONING_FIELDS if facts.has_reasoning_fields else ""}    return messages
'''


_REASONING_FIELDS = """\
        fields = (turn.get(name) for name in ("reasoning_content", "thinking", "reasoning"))
        apart = next((field for field in fields if isinstance(field, str)), "")
        if role == "assistant" and apart and not messages[-1].get("reasoning"):
            messages[-1]["reasoning"] = apart
"""

_PARSED = '''
def parsed(value):
    """A list that may stand as JSON in a text."""
    return json.loads(value) if isinstance(value, str) else value
'''

_PARTS = '''
def text_of(content):
    """The words of a turn that may be a list of parts."""
    if isinstance(content, str):
        return content
    return "".join(part if isinstance(part, str) else part["text"] for part in content)
'''

_ANSWER = '''
def answer(words):
    """An assistant's turn; a block of reasoning that opens it is kept apart, for the chat template to place."""
    opened = words.lstrip()
    if not opened.startswith("<think>") or "</think>" not in opened:
        return {"role": "assistant", "content": words}
    reasoning, _, rest = opened.removeprefix("<think>").partition("</think>")
    return {"role": "assistant", "content": rest.lstrip("\\n"), "reasoning": reasoning.strip()}
'''


def _digest(facts: DataFacts) -> str:
    said = "said = \"\\x1e\".join(f\"{message['role']}\\x1f{message['content']}\" for message in row)\n"
    if facts.format == "text":
        said = "said = row\n"
    elif facts.has_reasoning:
        start = "len(row) - 1" if facts.format == "prompt_completion" else "None"
        if facts.marks_completion:
            start = 'sum("completion" not in message for message in row)'
        said += _REASONED.replace("$START", start)
    return _DIGEST.replace("$SAID\n", said)


_REASONED = """\
    if any(message.get("reasoning") for message in row):
        turns = [
            {
                "role": message["role"],
                "content": message["content"],
                "reasoning": message.get("reasoning") or None,
                "tool_calls": [],
                "name": None,
                "tool_call_id": None,
            }
            for message in row
        ]
        start = $START
        whole = {"messages": turns, "tools": [], "completion_start": start}
        said = json.dumps(whole, ensure_ascii=False, sort_keys=True)
"""

_DIGEST = '''
def digest(row):
    """64 bits that are the same for rows that say the same."""
    $SAID
    return int.from_bytes(hashlib.blake2b(said.encode(), digest_size=8).digest(), "big")


def fingerprint(rows):
    """What all rows say, in order, as one sha256."""
    return hashlib.sha256(b"".join(digest(row).to_bytes(8, "little") for row in rows)).hexdigest()
'''
