"""Translate a model's chat template for Ollama: extract the fixed text between turns, and verify the result.

A model's chat template is a Jinja program; Ollama uses Go's `text/template`. There is no general translation, but nearly
all chat templates only put fixed text between turns, which can be extracted from rendered conversations.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from loratory.engine.data.conversation import Message, Role

# Texts that templates neither contain nor change.
_SYSTEM, _FIRST, _ANSWER, _SECOND = "zqsystemqz", "zqfirstqz", "zqanswerqz", "zqsecondqz"

RenderPrompt = Callable[[Sequence[Message]], str]  # renders a prompt; may raise any error


class NotTranslatableError(Exception):
    """The template does more than put fixed text between turns; the message has the reason."""


class OllamaTemplate(NamedTuple):
    """The fixed text between turns."""

    start_system: str
    start_user: str  # without a system turn; includes a default system prompt
    system_user: str
    user_assistant: str  # before an answer that is part of the conversation
    assistant_user: str
    generation_prompt: str  # at the end; may open a reasoning block, for example

    @property
    def go_text(self) -> str:
        """The template for Ollama. Source: https://pkg.go.dev/text/template, Actions and Variables."""
        return (
            '{{ $last := "" }}{{ range .Messages }}'
            f'{{{{ if eq .Role "system" }}}}{self.start_system}{{{{ .Content }}}}'
            '{{ else if eq .Role "user" }}'
            f'{{{{ if eq $last "system" }}}}{self.system_user}'
            f'{{{{ else if eq $last "assistant" }}}}{self.assistant_user}'
            f"{{{{ else }}}}{self.start_user}{{{{ end }}}}{{{{ .Content }}}}"
            f'{{{{ else if eq .Role "assistant" }}}}{self.user_assistant}{{{{ .Content }}}}{{{{ end }}}}'
            "{{ $last = .Role }}{{ end }}"
            f'{{{{ if ne $last "assistant" }}}}{self.generation_prompt}{{{{ end }}}}'
        )

    def render(self, messages: Sequence[Message]) -> str:
        """Render a conversation with the branches of `go_text`, as Ollama does."""
        text, last = "", ""
        for message in messages:
            before_user = {"system": self.system_user, "assistant": self.assistant_user}.get(last, self.start_user)
            before = {"system": self.start_system, "user": before_user, "assistant": self.user_assistant}
            text += before[message.role] + message.content
            last = message.role
        return text if last == "assistant" else text + self.generation_prompt


def translate(render: RenderPrompt, implied_bos: str) -> OllamaTemplate:
    """Translate the trained template for Ollama; `implied_bos` is the text that llama.cpp adds before every prompt.

    Raises:
        NotTranslatableError: If the result renders a sample conversation differently.
    """
    texts = _read_off(render)
    if not all(start.startswith(implied_bos) for start in texts[:2]):
        raise NotTranslatableError("it does not begin with the token that llama.cpp adds")
    template = texts._replace(
        start_system=texts.start_system.removeprefix(implied_bos), start_user=texts.start_user.removeprefix(implied_bos)
    )
    if any("{{" in piece or "}}" in piece or '"""' in piece for piece in template):
        raise NotTranslatableError("it contains Go template delimiters")
    for conversation in sample_conversations():
        if implied_bos + template.render(conversation) != render(conversation):
            raise NotTranslatableError("it renders turns differently by their position")
    return template


def sample_conversations() -> Iterator[tuple[Message, ...]]:
    """Yield conversations that a translated template must render exactly."""
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


def _read_off(render: RenderPrompt) -> OllamaTemplate:
    user, answer, second = Message("user", _FIRST), Message("assistant", _ANSWER), Message("user", _SECOND)
    start_user, generation_prompt = _split_at(render([user]), _FIRST)
    start_system, system_user, _ = _split_at(render([Message("system", _SYSTEM), user]), _SYSTEM, _FIRST)
    _, user_assistant, assistant_user, _ = _split_at(render([user, answer, second]), _FIRST, _ANSWER, _SECOND)
    return OllamaTemplate(start_system, start_user, system_user, user_assistant, assistant_user, generation_prompt)


def _split_at(text: str, *markers: str) -> list[str]:
    """Return the text before, between and after markers that occur once each."""
    pieces = []
    for marker in markers:
        before, separator, text = text.partition(marker)
        if not separator or marker in text:
            raise NotTranslatableError("it leaves turns out or repeats them")
        pieces.append(before)
    return [*pieces, text]
