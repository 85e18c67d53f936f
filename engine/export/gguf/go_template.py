"""Ollama's chat templates: written from a model's own, by looking at what that one renders, and rendered here to prove it.

A chat template of a model is a Jinja program, and Ollama reads Go's `text/template`. Nothing translates one into the
other in general. But nearly all of them only put fixed words between turns, and these words can be read off.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jinja2

from engine.data.conversation import Message, Role

# Words that no template holds, and that no template changes.
_SYSTEM, _FIRST, _ANSWER, _SECOND = "zqsystemqz", "zqfirstqz", "zqanswerqz", "zqsecondqz"

RenderPrompt = Callable[[Sequence[Message]], str]  # what the model reads before it answers; raises as it likes


class NotTranslatableError(Exception):
    """The template does more than to put fixed words between turns; says what."""


class _Between(NamedTuple):
    """The fixed words."""

    start_system: str
    start_user: str  # where the conversation has no system turn; with a default system prompt
    system_user: str
    user_assistant: str  # before an answer that is part of the conversation
    assistant_user: str
    asks: str  # at the end, before the answer that is wanted; may open a reasoning block, for example


def translate(render: RenderPrompt, implied_bos: str) -> str:
    """Write the template for Ollama.

    Args:
        render: The trained template, up to where the assistant is asked for its turn.
        implied_bos: What llama.cpp puts in front of every prompt by itself; empty where it puts nothing there.

    Raises:
        NotTranslatableError: If the result would not render every sample conversation as the trained template does.
    """
    words = _read_off(render)
    starts = (words.start_system, words.start_user)
    if not all(start.startswith(implied_bos) for start in starts):
        raise NotTranslatableError("it does not begin with the token that llama.cpp puts first")
    words = words._replace(
        start_system=words.start_system.removeprefix(implied_bos), start_user=words.start_user.removeprefix(implied_bos)
    )
    if any("{{" in piece or "}}" in piece or '"""' in piece for piece in words):
        raise NotTranslatableError("its words hold the marks of Go templates")
    text = (
        '{{ $last := "" }}{{ range .Messages }}'
        f'{{{{ if eq .Role "system" }}}}{words.start_system}{{{{ .Content }}}}'
        '{{ else if eq .Role "user" }}'
        f'{{{{ if eq $last "system" }}}}{words.system_user}'
        f'{{{{ else if eq $last "assistant" }}}}{words.assistant_user}'
        f"{{{{ else }}}}{words.start_user}{{{{ end }}}}{{{{ .Content }}}}"
        f'{{{{ else if eq .Role "assistant" }}}}{words.user_assistant}{{{{ .Content }}}}{{{{ end }}}}'
        "{{ $last = .Role }}{{ end }}"
        f'{{{{ if ne $last "assistant" }}}}{words.asks}{{{{ end }}}}'
    )
    template = GoTemplate(text)
    for conversation in sample_conversations():
        if implied_bos + template.render(conversation) != render(conversation):
            raise NotTranslatableError("it treats turns differently by their place")
    return text


def sample_conversations() -> Iterator[tuple[Message, ...]]:
    """Conversations that a translated template must render exactly."""
    turns: tuple[tuple[Role, str], ...] = (
        ("user", "What is a rank?\nOne sentence, please."),
        ("assistant", "The width of an adapter: r numbers stand between its two matrices."),
        ("user", 'And "alpha"? <b>Briefly</b> — 2 × r?'),
        ("assistant", "It scales the update.\n\n- by alpha / r"),
        ("user", "Thanks!"),
    )
    for opening in ((), (Message("system", "You answer in short sentences.\nYou never guess."),)):
        for count in (1, 3, 5):
            yield (*opening, *(Message(role, content) for role, content in turns[:count]))


def _read_off(render: RenderPrompt) -> _Between:
    user, answer, second = Message("user", _FIRST), Message("assistant", _ANSWER), Message("user", _SECOND)
    start_user, asks = _cut(render([user]), _FIRST)
    start_system, system_user, _ = _cut(render([Message("system", _SYSTEM), user]), _SYSTEM, _FIRST)
    _, user_assistant, assistant_user, _ = _cut(render([user, answer, second]), _FIRST, _ANSWER, _SECOND)
    return _Between(start_system, start_user, system_user, user_assistant, assistant_user, asks)


def _cut(text: str, *words: str) -> list[str]:
    """Return what is before, between and after some words, each of which occurs once."""
    pieces = []
    for word in words:
        before, found, text = text.partition(word)
        if not found or word in text:
            raise NotTranslatableError("it leaves turns out or repeats them")
        pieces.append(before)
    return [*pieces, text]


_ACTION = re.compile(r"\{\{ (.*?) \}\}")
_SET = re.compile(r"(\$\w+) :?= (\.\w+|\"\w*\")")
_COMPARE = re.compile(r"(else )?if (eq|ne) (\.\w+|\$\w+) (\"\w*\")")
_IN_JINJA = {".Role": "message.role", ".Content": "message.content", "eq": "==", "ne": "!="}


class GoTemplate:
    """The part of Go's `text/template` that `translate` writes: range, if, eq, ne, variables and fields; Jinja renders it.

    Source: https://pkg.go.dev/text/template, Actions and Variables.
    """

    def __init__(self, text: str) -> None:
        parts = _ACTION.split(text)  # text, action, text, action … text
        self._texts = parts[::2]  # as values, so nothing in them is read as Jinja
        opened: list[str] = []
        written = ["{% set variables = namespace() %}{{ texts[0] }}"]
        for number, action in enumerate(parts[1::2], start=1):
            written.append(f"{_in_jinja(action, opened)}{{{{ texts[{number}] }}}}")
        assert not opened, "a beginning without an end"
        self._template = jinja2.Environment(keep_trailing_newline=True).from_string("".join(written))  # noqa: S701 - no HTML

    def render(self, messages: Sequence[Message]) -> str:
        """Render as Ollama does, with `.Messages` set."""
        return self._template.render(messages=messages, texts=self._texts)


def _in_jinja(action: str, opened: list[str]) -> str:
    """Return an action as Jinja has it, and keep account of the blocks that are open."""
    if action == "range .Messages":
        opened.append("endfor")
        return "{% for message in messages %}"
    if action == "end":
        return f"{{% {opened.pop()} %}}"
    if action == "else":
        return "{% else %}"
    if (comparison := _COMPARE.fullmatch(action)) is not None:
        if not comparison[1]:
            opened.append("endif")
        left, operator, right = _expression(comparison[3]), _IN_JINJA[comparison[2]], comparison[4]
        return f"{{% {'elif' if comparison[1] else 'if'} {left} {operator} {right} %}}"
    if (assignment := _SET.fullmatch(action)) is not None:
        return f"{{% set {_expression(assignment[1])} = {_expression(assignment[2])} %}}"
    return f"{{{{ {_expression(action)} }}}}"


def _expression(name: str) -> str:
    return f"variables.{name[1:]}" if name.startswith("$") else _IN_JINJA.get(name, name)
