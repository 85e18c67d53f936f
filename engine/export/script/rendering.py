"""The part of a stand-alone script that puts conversations into the words of a chat template, as `engine.data` does."""

from dataclasses import dataclass

from engine.export.script.rows import DataFacts


@dataclass(frozen=True)
class RenderingCode:
    """Functions that write conversations, and how `encode` uses them.

    Attributes:
        code: Of the functions.
        opening: Lines that begin `encode`.
        sent: Name of the messages that the chat template reads.
        turn: A call of `turn` with `$INDEX` for the place of the turn.
    """

    code: str
    opening: tuple[str, ...]
    sent: str
    turn: str


def rendering_code(facts: DataFacts, *, takes_parts: bool, by_turns: bool) -> RenderingCode:
    """Only what these rows need.

    Args:
        facts: About the rows.
        takes_parts: Whether the chat template may want the words of a turn as a list of parts.
        by_turns: Whether the answers are told from the rest; else whole conversations are learned.
    """
    changes = facts.has_system or facts.has_repeated_roles
    extras = (_SENT_REASONING if facts.has_reasoning else "") + (_SENT_PARTS if takes_parts else "")
    # A mark is nobody's business but ours.
    differs = bool(extras) or facts.marks_completion
    pieces = [_RENDERED]
    if changes or facts.has_reasoning:
        pieces.append(_shows(facts, differs=differs))
    if changes:
        pieces.append(_fitted(facts))
    if takes_parts:
        pieces.append(_PARTS)
    if differs:
        pieces.append(_SENT.replace("$EXTRAS", extras))
    if by_turns:
        pieces.append(_TURN_REASONED if facts.has_reasoning else _TURN)
    sent = "sent" if differs else "messages"
    opening = [
        *(["messages = fitted(messages, tokenizer)"] if changes else []),
        *(["sent = sent_as(messages, tokenizer)"] if differs else []),
    ]
    both = f"messages, {sent}" if facts.has_reasoning else sent
    code = "\n\n".join(piece.strip("\n") + "\n" for piece in pieces)
    return RenderingCode(code, tuple(opening), sent, f"turn({both}, $INDEX, tokenizer)")


def _shows(facts: DataFacts, *, differs: bool) -> str:
    code = _SHOWS.replace("$TURNS", "sent" if differs else "turns")
    if not facts.has_reasoning:
        sent = "    sent = sent_as(turns, tokenizer)\n" if differs else ""
        return code.replace("$FIELDS", "").replace("    $SENT\n", sent).replace("$WORDS", "WORDS[: len(roles)]")
    sent = "    sent = sent_as(turns, tokenizer)\n    sent[-1].update(fields)  # the last turn's\n"
    words = "(*WORDS[: len(roles)], *fields.values())"
    return code.replace("$FIELDS", ", **fields").replace("    $SENT\n", sent).replace("$WORDS", words)


def _fitted(facts: DataFacts) -> str:
    mark = ', "completion": message.get("completion")' if facts.marks_completion else ""
    system = ""
    if facts.has_system:
        opening = _LATER_SYSTEM if facts.has_later_system else _FIRST_SYSTEM
        system = opening + _FITTED_SYSTEM.replace("$MARK", mark)
    joined = ""
    if facts.has_repeated_roles or facts.has_later_system:
        same = ' and message.get("completion") == last.get("completion")' if facts.marks_completion else ""
        joined = _FITTED_ROLES.replace("$SAME", same)
    about = ["A system turn that it does not take opens the user's turn that follows."] if system else []
    about += ["Turns of one role are joined where it wants roles to alternate."] if joined else []
    listed = "\n    ".join(about)
    return f'''
def fitted(messages, tokenizer):
    """The conversation in the terms of the chat template.

    {listed}
    """
{system}{joined}    return messages
'''


_RENDERED = '''
class Refused(Exception):
    """Nothing can be learned from a row."""


def rendered(sent, tokenizer, prompt=False):
    """A conversation as the chat template writes it; `prompt` adds what asks the assistant for an answer."""
    try:
        return tokenizer.apply_chat_template(sent, tokenize=False, add_generation_prompt=prompt)
    except Exception as error:  # templates raise whatever their authors and the data make happen
        raise Refused(f"the chat template refuses it: {error}") from error
'''

_SHOWS = '''
WORDS = ("Qa1xyz", "Wb2xyz", "Ec3xyz", "Rd4xyz", "Te5xyz")


@functools.cache
def shows(tokenizer, *roles$FIELDS):
    """Whether the chat template writes what turns of these roles say; found out by asking."""
    turns = [{"role": role, "content": word} for role, word in zip(roles, WORDS)]
    $SENT
    try:
        text = rendered($TURNS, tokenizer)
    except Refused:
        return False
    return all(word in text for word in $WORDS)
'''

_FIRST_SYSTEM = """\
    takes_system = shows(tokenizer, "system", "user", "assistant")
    turns, held = [], []
    for message in messages:
"""

_LATER_SYSTEM = """\
    turns, held = [], []
    for index, message in enumerate(messages):
        asked = ("user", "assistant", "system", "user", "assistant") if index else ("system", "user", "assistant")
        takes_system = shows(tokenizer, *asked)
"""

_FITTED_SYSTEM = """\
        if message["role"] == "system" and not takes_system:
            held.append(message["content"])
            continue
        if held and message["role"] == "user":
            message = {**message, "content": "\\n\\n".join([*held, message["content"]])}
        elif held:
            turns.append({"role": "user", "content": "\\n\\n".join(held)$MARK})
        turns.append(message)
        held = []
    if held:
        turns.append({"role": "user", "content": "\\n\\n".join(held)})
    messages = turns
"""

_FITTED_ROLES = """\
    if shows(tokenizer, "user", "user", "assistant"):
        return messages
    joined = []
    for message in messages:
        last = joined[-1] if joined else {"role": None}
        if message["role"] == last["role"] != "system"$SAME:
            joined[-1] = {**last, "content": f"{last['content']}\\n\\n{message['content']}"}
        else:
            joined.append(message)
    messages = joined
"""

_PARTS = '''
@functools.cache
def wants_parts(tokenizer):
    """Whether the chat template leaves plain text out and takes lists of parts, as those of models that see do."""
    answers = []
    for content in ("Qa1xyz", [{"type": "text", "text": "Qa1xyz"}]):
        try:
            answers.append("Qa1xyz" in rendered([{"role": "user", "content": content}], tokenizer))
        except Refused:
            answers.append(False)
    return answers == [False, True]
'''

_SENT = '''
def sent_as(messages, tokenizer):
    """The messages as the chat template reads them."""
    sent = []
    for message in messages:
        one = {"role": message["role"], "content": message["content"]}
$EXTRAS        sent.append(one)
    return sent
'''

_SENT_REASONING = """\
        reasoning = (message.get("reasoning") or "").strip()
        if reasoning and shows(tokenizer, "user", "assistant", reasoning_content="Ec3xyz"):
            one["reasoning_content"] = reasoning
        elif reasoning:
            one["content"] = f"<think>\\n{reasoning}\\n</think>\\n\\n{one['content']}"
"""

_SENT_PARTS = """\
        if wants_parts(tokenizer):
            one["content"] = [{"type": "text", "text": one["content"]}]
"""

_TURN = '''
def turn(sent, index, tokenizer):
    """What a chat sends at this point to get the turn at `index`, and what the model should answer."""
    prompt, whole = rendered(sent[:index], tokenizer, prompt=True), rendered(sent[: index + 1], tokenizer)
    if whole.startswith(prompt):
        return prompt, whole[len(prompt) :]
    shared = next((place for place, (a, b) in enumerate(zip(prompt, whole)) if a != b), min(len(prompt), len(whole)))
    if not prompt[shared:].strip():
        return prompt, whole[shared:].lstrip()
    opened = re.search(r"<([a-z_]+)>\\s*$", prompt)
    if opened and whole.startswith(prompt[: opened.start()]):
        # The prompt opens a block of reasoning that the written turn lacks: it is closed, empty.
        answer = whole[opened.start() :].lstrip("\\n")
        return prompt, f"\\n</{opened[1]}>\\n\\n{answer}"
    raise Refused(f"the chat template asks for this answer in another way than it writes it: {prompt[shared:]!r}")
'''

_TURN_REASONED = '''
def turn(messages, sent, index, tokenizer, without=False):
    """What a chat sends at this point to get the turn at `index`, and what the model should answer."""
    prompt, whole = rendered(sent[:index], tokenizer, prompt=True), rendered(sent[: index + 1], tokenizer)
    reasoning = messages[index].get("reasoning") or ""
    thought = "" if without else reasoning.strip()
    shared = len(prompt)
    if not whole.startswith(prompt):
        pairs = enumerate(zip(prompt, whole))
        shared = next((place for place, (a, b) in pairs if a != b), min(len(prompt), len(whole)))
    if not prompt[shared:].strip():
        answer = whole[shared:] if shared == len(prompt) else whole[shared:].lstrip()
        if thought and thought not in answer:  # the template cut it out
            answer = f"<think>\\n{thought}\\n</think>\\n\\n{answer}"
        return prompt, answer
    opened = re.search(r"<([a-z_]+)>\\s*$", prompt)
    if opened and whole.startswith(prompt[: opened.start()]):
        # The prompt opens a block of reasoning that the written turn lacks: close it, filled or empty.
        inside, answer = reasoning.strip("\\n"), whole[opened.start() :].lstrip("\\n")
        return prompt, f"{inside}\\n</{opened[1]}>\\n\\n{answer}"
    if reasoning and not without and re.search(r"<([a-z_]+)>\\s*</\\1>\\s*$", prompt):
        # The prompt ends the reasoning before the answer begins: this template answers without.
        sent[index] = {"role": "assistant", "content": messages[index]["content"]}
        return turn(messages, sent, index, tokenizer, without=True)
    raise Refused(f"the chat template asks for this answer in another way than it writes it: {prompt[shared:]!r}")
'''
