"""The half of a stand-alone script that makes token ids of a dataset: only what this dataset and these settings need."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from engine.config.run import RunConfig
from engine.data.convert import ROLES
from engine.export.script_text import literal

FileKind = Literal["json_lines", "json_array", "delimited", "lines", "paragraphs", "parquet", "hub"]


@dataclass(frozen=True)
class DataFacts:
    """What a look at the rows told.

    Attributes:
        columns: Of the format's roles.
        files: To read; empty for the Hub.
        gzip: Whether the files are packed.
        tags: Names of the roles that turns have, as the rows spell them.
        turn_fields: Where a turn has its role and its words.
        left_out: Numbers of rows that were left out, from 0; they cannot be read or hold nothing to learn.
        has_system: Whether any row has a system turn.
        has_parts: Whether the words of a turn may be a list of parts.
        has_empty_answers: Whether an assistant's turn may say nothing.
        opens_with_answer: Whether an assistant may speak first.
        most_answers: The most assistant's turns of one row.
        has_duplicates: Whether some rows say the same.
        held_out_draw: Whether there are so many held-out rows that only some of them are measured.
    """

    kind: FileKind
    format: str
    columns: Mapping[str, str]
    files: tuple[str, ...] = ()
    encoding: str = "utf-8-sig"
    delimiter: str = ","
    gzip: bool = False
    tags: tuple[str, ...] = ()
    turn_fields: tuple[str, str] = ("role", "content")
    left_out: tuple[int, ...] = ()
    has_system: bool = False
    has_parts: bool = False
    has_empty_answers: bool = False
    opens_with_answer: bool = False
    most_answers: int = 1
    has_duplicates: bool = False
    held_out_draw: bool = False


def data_code(config: RunConfig, facts: DataFacts) -> str:
    """Functions from `read_rows` to `encode` and `split`."""
    pieces = [_reading(config, facts)]
    if facts.format != "text":
        pieces += [_conversation(facts)]
        if facts.has_system:
            pieces.append(_SYSTEM)
    pieces.append(_encoding(config, facts))
    if config.dataset.eval_fraction > 0:
        pieces.append(_splitting(facts))
    return "\n\n".join(piece.strip("\n") + "\n" for piece in pieces)


def _reading(config: RunConfig, facts: DataFacts) -> str:
    if facts.kind == "hub":
        dataset = config.dataset
        asked = ["name"]
        asked += [literal(dataset.subset)] if dataset.subset else []
        asked += [f"split={literal(dataset.split)}"]
        asked += [f"revision={literal(dataset.revision)}"] if dataset.revision else []
        return f'''
def read_rows(name):
    """Rows of a dataset on the Hub."""
    return list(load_dataset({", ".join(asked)}))
'''
    if facts.kind == "parquet":
        return '''
def read_rows(files):
    """Rows of Parquet files."""
    return list(load_dataset("parquet", data_files=files, split="train"))
'''
    opened = (
        f'gzip.open(path, "rt", encoding="{facts.encoding}")'
        if facts.gzip
        else f'open(path, encoding="{facts.encoding}", newline="")'
        if facts.kind == "delimited"
        else f'open(path, encoding="{facts.encoding}")'
    )
    left = facts.left_out and facts.kind in ("json_lines", "delimited")
    rows = {
        "json_lines": "lines = [line for line in file if line.strip()]\n            rows += "
        + (
            "[None if number in LEFT_OUT else json.loads(line) for number, line in enumerate(lines, len(rows))]"
            if left
            else "[json.loads(line) for line in lines]"
        ),
        "json_array": "rows += json.load(file)",
        "delimited": f"rows += csv.DictReader(file, delimiter={literal(facts.delimiter)})",
        "lines": 'rows += [{"text": line.rstrip("\\n")} for line in file if line.strip()]',
        "paragraphs": 'paragraphs = re.split(r"\\n(?:[ \\t]*\\n)+", file.read().strip("\\n"))\n            '
        'rows += [{"text": paragraph} for paragraph in paragraphs]',
    }[facts.kind]
    return f'''
def read_rows(files):
    """Rows of the files, in order."""
    rows = []
    for path in files:
        with {opened} as file:
            {rows}
    return rows
'''


def _conversation(facts: DataFacts) -> str:
    columns = facts.columns
    lines: list[str] = []
    if facts.format == "alpaca":
        if "input" in columns:
            parts = f'(row[{literal(columns["instruction"])}], row.get({literal(columns["input"])}) or "")'
            lines.append(f'question = "\\n\\n".join(part for part in {parts} if part.strip())')
        else:
            lines.append(f"question = row[{literal(columns['instruction'])}]")
        lines.append("messages = []")
        if "history" in columns:
            lines += [
                f"for asked, answered in row.get({literal(columns['history'])}) or []:",
                '    messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]',
            ]
        lines.append('messages.append({"role": "user", "content": question})')
        lines.append(f'messages.append({{"role": "assistant", "content": row[{literal(columns["output"])}]}})')
    elif facts.format == "prompt_completion" and not facts.tags:
        lines += [
            "messages = [",
            f'    {{"role": "user", "content": row[{literal(columns["prompt"])}]}},',
            f'    {{"role": "assistant", "content": row[{literal(columns["completion"])}]}},',
            "]",
        ]
    else:
        lines += _turn_lines(facts)
    if facts.has_system and "system" in columns:
        lines += [
            f"if (row.get({literal(columns['system'])}) or '').strip():".replace("''", '""'),
            f'    messages.insert(0, {{"role": "system", "content": row[{literal(columns["system"])}]}})',
        ]
    roles = ""
    if facts.tags:
        roles = f"ROLES = {literal({tag: ROLES[tag] for tag in facts.tags})}\n\n\n"
    parts = _PARTS if facts.has_parts else ""
    body = "\n    ".join(lines)
    return (
        f'{roles}{parts}def conversation(row):\n    """One row as chat messages."""\n    {body}\n    return messages\n'
    )


def _turn_lines(facts: DataFacts) -> list[str]:
    role, content = facts.turn_fields
    words = f'turn["{content}"]'
    if facts.has_parts:
        words = f"text_of({words})"
    if facts.format == "prompt_completion":
        turns = f"[*row[{literal(facts.columns['prompt'])}], *row[{literal(facts.columns['completion'])}]]"
    else:
        turns = f"row[{literal(facts.columns['conversations' if facts.format == 'sharegpt' else 'messages'])}]"
    return [
        "messages = [",
        f'    {{"role": ROLES[turn["{role}"].strip().lower()], "content": {words}}}',
        f"    for turn in {turns}",
        "]",
    ]


_PARTS = '''def text_of(content):
    """The words of a turn that may be a list of parts."""
    if isinstance(content, str):
        return content
    return "".join(part if isinstance(part, str) else part["text"] for part in content)


'''

_SYSTEM = '''
def fitted(messages, tokenizer):
    """The conversation as the chat template takes it: without a system turn of its own, one opens the user's turn."""
    if messages[0]["role"] != "system":
        return messages
    try:
        if messages[0]["content"].strip() in tokenizer.apply_chat_template(messages[:2], tokenize=False):
            return messages
    except Exception:  # the template raises for a system turn
        pass
    system, first, *others = messages
    return [{**first, "content": f"{system['content']}\\n\\n{first['content']}"}, *others]
'''


def _encoding(config: RunConfig, facts: DataFacts) -> str:
    if facts.format == "text":
        return _ENCODE_TEXT
    fitted = "    messages = fitted(messages, tokenizer)\n" if facts.has_system else ""
    if config.dataset.train_on == "all":
        return _ENCODE_ALL.replace("$FITTED", fitted)
    condition = 'message["role"] == "assistant"'
    if facts.has_empty_answers:
        condition += ' and message["content"].strip()'
    answers = f"[index for index, message in enumerate(messages) if {condition}]"
    if facts.opens_with_answer:
        answers = f'{answers}\n    asked = next(index for index, message in enumerate(messages) if message["role"] != "assistant")\n    answers = [index for index in answers if index > asked]'
    if config.dataset.train_on != "assistant" and facts.most_answers > 1:
        answers = f"{answers}[-1:]  # only the last one is learned"
    several = facts.most_answers > 1 and config.dataset.train_on == "assistant"
    encode = _ENCODE_SEVERAL if several else _ENCODE_ONE
    return _LEARN + "\n\n" + encode.strip("\n").replace("$FITTED", fitted).replace("$ANSWERS", answers) + "\n"


_ENCODE_TEXT = '''
def encode(text, tokenizer):
    """Token ids of a text with the end-of-sequence token; all of it is learned but the first token."""
    ids = tokenizer(text if text.endswith(tokenizer.eos_token) else text + tokenizer.eos_token)["input_ids"]
    ids = ids[:MAX_LENGTH]
    return [{"input_ids": ids, "labels": [-100, *ids[1:]]}]
'''

_ENCODE_ALL = '''
def encode(messages, tokenizer):
    """Token ids of a conversation, all of which is learned but the first token."""
$FITTED    text = tokenizer.apply_chat_template(messages, tokenize=False)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"][:MAX_LENGTH]
    return [{"input_ids": ids, "labels": [-100, *ids[1:]]}]
'''

_LEARN = '''
def learned_until(ids, start, end, tokenizer):
    """Where an answer ends: after the token that ends the turn. What a template puts behind it is never asked for."""
    controls = {i for i, token in tokenizer.added_tokens_decoder.items() if str(token).strip()}
    controls.update(tokenizer.all_special_ids)
    for last in range(end, start, -1):
        if ids[last - 1] in controls:
            return last
        if tokenizer.decode(ids[last - 1]).strip():
            break
    return None


def turn(messages, index, tokenizer):
    """What a chat sends at this point to get the turn at `index`, and what the model should answer."""
    prompt = tokenizer.apply_chat_template(messages[:index], add_generation_prompt=True, tokenize=False)
    whole = tokenizer.apply_chat_template(messages[: index + 1], tokenize=False)
    if not whole.startswith(prompt):
        raise ValueError(f"The chat template asks for this answer in another way than it writes it: {prompt[-60:]!r}")
    return prompt, whole[len(prompt) :]


def ids_of(text, tokenizer):
    """Token ids of a part of a conversation."""
    return tokenizer(text, add_special_tokens=False)["input_ids"]
'''.strip("\n")

_ENCODE_ONE = '''
def encode(messages, tokenizer):
    """Token ids of a conversation, and labels that are -100 wherever nothing is learned."""
$FITTED    answers = $ANSWERS
    prompt, answer = turn(messages, answers[-1], tokenizer)
    ids, asked = ids_of(prompt + answer, tokenizer), ids_of(prompt, tokenizer)
    if ids[: len(asked)] != asked:  # a token reaches across; a chat sends the prompt by itself
        ids = asked + ids_of(answer, tokenizer)
    end = learned_until(ids, len(asked), len(ids), tokenizer)
    if end is None:  # this template ends a turn without a token of its own
        ids.append(tokenizer.eos_token_id)
        end = len(ids)
    labels = [token if len(asked) <= place < end else -100 for place, token in enumerate(ids)]
    return [{"input_ids": ids[:MAX_LENGTH], "labels": labels[:MAX_LENGTH]}]
'''

_ENCODE_SEVERAL = '''
def encode(messages, tokenizer):
    """Token ids of a conversation, and labels that are -100 wherever nothing is learned.

    Usually one sequence in which every answer is learned. Some templates rewrite earlier turns (they drop their
    reasoning, for example); a turn whose prompt and answer do not stand in the text word for word gets its own sequence.
    """
$FITTED    answers = $ANSWERS
    waiting = [turn(messages, index, tokenizer) for index in answers]
    sequences = []
    while waiting:
        *earlier, (prompt, answer) = waiting
        text, waiting = prompt + answer, []
        ids, asked = ids_of(text, tokenizer), ids_of(prompt, tokenizer)
        if ids[: len(asked)] != asked:  # a token reaches across; a chat sends the prompt by itself
            ids = asked + ids_of(answer, tokenizer)
        end = learned_until(ids, len(asked), len(ids), tokenizer)
        if end is None:  # this template ends a turn without a token of its own
            ids.append(tokenizer.eos_token_id)
            end = len(ids)
        learned = [(len(asked), end)]
        for before, said in earlier:
            start, after = ids_of(before, tokenizer), ids_of(before + said, tokenizer)
            if text.startswith(before + said) and ids[: len(after)] == after and after[: len(start)] == start:
                end = learned_until(ids, len(start), len(after), tokenizer)
                learned.append((len(start), end or len(after)))
            else:
                waiting.append((before, said))
        labels = [-100] * len(ids)
        for start, end in learned:
            labels[start:end] = ids[start:end]
        sequences.insert(0, {"input_ids": ids[:MAX_LENGTH], "labels": labels[:MAX_LENGTH]})
    return sequences
'''


def _splitting(facts: DataFacts) -> str:
    said = (
        "said = row"
        if facts.format == "text"
        else "said = \"\\x1e\".join(f\"{message['role']}\\x1f{message['content']}\" for message in row)"
    )
    return _SPLIT.replace("$SAID", said) + (_TOGETHER if facts.has_duplicates else _SMALLEST)


_SPLIT = '''
def digest(row):
    """64 bits that are the same for rows that say the same."""
    $SAID
    return int.from_bytes(hashlib.blake2b(said.encode(), digest_size=8).digest(), "big")


def held_out(rows):
    """For each row whether it is held out: those whose mixed digests are the smallest."""
    places = np.array([digest(row) for row in rows], dtype=np.uint64)
    places ^= np.random.default_rng(SEED).integers(2**64, dtype=np.uint64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):  # the finalizer of SplitMix64
        places ^= places >> np.uint64(shift)
        places *= np.uint64(factor)
    places ^= places >> np.uint64(31)
'''

_SMALLEST = """    count = max(1, round(EVAL_FRACTION * len(rows)))
    return places <= np.partition(places, count - 1)[count - 1]
"""

_TOGETHER = """    # Rows that say the same stand on one side together.
    values, sizes = np.unique(places, return_counts=True)
    chosen, room = [], max(1, round(EVAL_FRACTION * len(rows)))
    for value, size in zip(values[:-1], sizes[:-1]):
        if size <= room:
            chosen.append(value)
            room -= size
    return np.isin(places, chosen or values[:-1][[np.argmin(sizes[:-1])]])
"""
