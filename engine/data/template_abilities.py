"""What a chat template can express, found out by asking it."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from engine.data.problems import RowProblemError, shortened
from engine.data.tokenizer import ChatTokenizer, Same
from engine.processes.time_limit import TimeLimitError, time_limit

TEMPLATE_SECONDS = 3.0  # of computing time for one rendering; the slowest template in use needs some milliseconds

ChatMessages = list[dict[str, Any]]


def apply_template(tokenizer: ChatTokenizer, messages: ChatMessages, tools: list[Any], *, prompt: bool) -> str:
    """Render with the frozen template; `prompt` adds what asks the assistant for an answer.

    Raises:
        RowProblemError: With the template's own words, if it refuses, or if it computes for too long.
    """
    try:
        with time_limit(TEMPLATE_SECONDS):
            text = tokenizer.apply_chat_template(
                messages, tools=tools or None, tokenize=False, add_generation_prompt=prompt
            )
    except TimeLimitError as error:
        raise RowProblemError(
            "template", f"the model's chat template computed for more than {TEMPLATE_SECONDS:.0f} seconds"
        ) from error
    except Exception as error:  # templates raise jinja errors, TypeErrors, whatever their authors and data make happen
        words = str(error).strip().splitlines()
        raise RowProblemError(
            "template",
            f"the model's chat template refuses it: {shortened(words[0] if words else 'no reason given', 120)}",
        ) from error
    return str(text)


@dataclass(frozen=True)
class TemplateAbilities:
    """What a template takes as it is; what it does not take, `engine.data.express` puts into words."""

    system: bool
    later_system: bool  # a system turn in the middle
    repeated_roles: bool  # two turns of one role in a row
    tool_list: bool
    tool_calls: bool  # calls and their results
    parallel_calls: bool  # several calls in one turn
    text_arguments: bool  # joins a call's arguments as text, and fails on an object
    text_parts: bool  # wants content as a list of parts, and leaves out what is plain text
    reasoning: Literal["field", "inline", "none"]  # a field of its own, as <think> in the content, or cut out


_A, _B, _C, _D, _E = "Qa1xyz", "Wb2xyz", "Ec3xyz", "Rd4xyz", "Te5xyz"


@lru_cache(maxsize=16)
def _probe(same: Same) -> TemplateAbilities:
    return _Probe(same.tokenizer).abilities()


def abilities_of(tokenizer: ChatTokenizer) -> TemplateAbilities:
    """Find out, once per tokenizer and template, what the template can express."""
    return _probe(Same(tokenizer))


class _Probe:
    """Renders short conversations of unmistakable words and looks which of them come out."""

    def __init__(self, tokenizer: ChatTokenizer) -> None:
        self._tokenizer = tokenizer
        self._text_parts = False

    def abilities(self) -> TemplateAbilities:
        question = [{"role": "user", "content": _A}]
        if not self._shows(question, _A):
            self._text_parts = True
            self._text_parts = self._shows(question, _A)
        user, answer = {"role": "user", "content": _A}, {"role": "assistant", "content": _B}
        system = {"role": "system", "content": _C}
        dictionary_calls = self._takes_calls({_C: _D}, calls=1)
        text_calls = not dictionary_calls and self._takes_calls(f'{{"{_C}": "{_D}"}}', calls=1)
        arguments: Any = f'{{"{_C}": "{_D}"}}' if text_calls else {_C: _D}
        return TemplateAbilities(
            system=self._shows([system, user, answer], _A, _B, _C),
            later_system=self._shows([user, answer, system, user, answer], _C),
            repeated_roles=self._shows([user, {"role": "user", "content": _D}, answer], _A, _B, _D),
            tool_list=self._shows_tools(),
            tool_calls=dictionary_calls or text_calls,
            parallel_calls=self._takes_calls(arguments, calls=2),
            text_arguments=text_calls,
            text_parts=self._text_parts,
            reasoning=self._reasoning(user),
        )

    def _shows(self, messages: ChatMessages, *words: str, tools: list[Any] | None = None) -> bool:
        if self._text_parts:
            messages = [message | {"content": as_parts(message["content"])} for message in messages]
        try:
            text = apply_template(self._tokenizer, messages, tools or [], prompt=False)
        except RowProblemError:
            return False
        return all(word in text for word in words)

    def _shows_tools(self) -> bool:
        messages = [{"role": "user", "content": _A}]
        return self._shows(messages, _A, _B, _C, _D, tools=[probe_tool(_B, _C, _D)])

    def _takes_calls(self, arguments: Any, calls: int) -> bool:
        names = [f"{_B}{number}" for number in range(calls)]
        ids = [f"call{number:05d}" for number in range(calls)]
        messages: ChatMessages = [
            {"role": "user", "content": _A},
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [
                    {"id": id_, "type": "function", "function": {"name": name, "arguments": arguments}}
                    for id_, name in zip(ids, names, strict=True)
                ],
            },
            *(
                {"role": "tool", "name": name, "tool_call_id": id_, "content": f"{_E}{id_}"}
                for id_, name in zip(ids, names, strict=True)
            ),
            {"role": "assistant", "content": f"{_A}{_B}"},
        ]
        results = [f"{_E}{id_}" for id_ in ids]
        tools = [probe_tool(name, _C, "a parameter") for name in names]
        return self._shows(messages, *names, *results, _C, _D, f"{_A}{_B}", tools=tools)

    def _reasoning(self, user: dict[str, Any]) -> Literal["field", "inline", "none"]:
        if self._shows([user, {"role": "assistant", "content": _B, "reasoning_content": _C}], _B, _C):
            return "field"
        inline = {"role": "assistant", "content": f"<think>\n{_C}\n</think>\n\n{_B}"}
        return "inline" if self._shows([user, inline], _B, _C) else "none"


def as_parts(content: str) -> list[dict[str, str]]:
    """Text as the only part of a message, for templates of models that also take pictures."""
    return [{"type": "text", "text": content}]


def probe_tool(name: str, parameter: str, description: str) -> dict[str, Any]:
    """A tool's JSON schema with one text parameter."""
    properties = {parameter: {"type": "string", "description": description}}
    parameters = {"type": "object", "properties": properties, "required": [parameter]}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}
