"""What a chat template can express, found out by asking it."""

import json
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from engine.data.records import RowProblemError, shortened
from engine.data.render.tokens import ChatTokenizer, TokenizerState
from engine.errors import ModelLimitError
from engine.processes.limits import TimeLimitError, confined, renew_deadline, time_limit

TEMPLATE_SECONDS = 2.0  # of computing time for one rendering; the slowest template in use needs some milliseconds
# What a process may spend on rendering and tokenizing, in C code as well: more than the template alone may, and several
# times what rows of the largest size need.
_RENDERING_SECONDS = 5.0
_RENDERING_SECONDS_PER_MB = 5.0
_RENDERING_MEMORY_BYTES = 1 << 30
_ALWAYS_FITS_CHARACTERS = 1_000_000
_LONGER_THAN_INPUT = 10  # times; escaping in JSON makes text up to six times as long

ChatMessages = list[dict[str, Any]]


def apply_template(tokenizer: ChatTokenizer, messages: ChatMessages, tools: list[Any], *, prompt: bool) -> str:
    """Render with the frozen template; `prompt` adds what asks the assistant for an answer.

    Raises:
        RowProblemError: With the template's own words, if it refuses.
        ModelLimitError: If it computes for too long, needs too much memory or writes too much.
    """
    try:
        with time_limit(TEMPLATE_SECONDS):
            text = tokenizer.apply_chat_template(
                messages, tools=tools or None, tokenize=False, add_generation_prompt=prompt
            )
    except TimeLimitError as error:
        raise _overrun(tokenizer, f"computed for more than {TEMPLATE_SECONDS:.0f} seconds on one row") from error
    except MemoryError as error:
        raise _overrun(tokenizer, "needs more memory for one row than it may use") from error
    except Exception as error:  # templates raise jinja errors, TypeErrors, whatever their authors and data make happen
        words = str(error).strip().splitlines()
        raise RowProblemError(
            "template",
            f"the model's chat template refuses it: {shortened(words[0] if words else 'no reason given', 120)}",
        ) from error
    if len(text) > _ALWAYS_FITS_CHARACTERS and len(text) > _LONGER_THAN_INPUT * len(json.dumps([messages, tools])):
        raise _overrun(tokenizer, f"turns one row into {len(text):,} characters, which is far more than the row has")
    return str(text)


def rendering_confined(size_bytes: int) -> AbstractContextManager[None]:
    """Bound what rendering and tokenizing rows of this size computes and allocates; it ends the process that exceeds it."""
    return confined(_rendering_seconds(size_bytes), _RENDERING_MEMORY_BYTES)


def next_row_confined(size_bytes: int) -> None:
    """Inside `rendering_confined`: give the next row its own time."""
    renew_deadline(_rendering_seconds(size_bytes))


def _rendering_seconds(size_bytes: int) -> float:
    return _RENDERING_SECONDS + _RENDERING_SECONDS_PER_MB * size_bytes / 1e6


def _overrun(tokenizer: ChatTokenizer, what: str) -> ModelLimitError:
    name = getattr(tokenizer, "name_or_path", "") or "this model"
    return ModelLimitError(
        f"The chat template of {name} {what}; it was stopped.",
        "Use the original chat template of the model, or choose another model.",
    )


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
def _probe(state: TokenizerState) -> TemplateAbilities:
    return _Probe(state.tokenizer).abilities()


def abilities_of(tokenizer: ChatTokenizer) -> TemplateAbilities:
    """Find out, once per tokenizer and template, what the template can express."""
    return _probe(TokenizerState(tokenizer))


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
        object_calls = self._takes_calls(calls=1, as_text=False)
        text_calls = not object_calls and self._takes_calls(calls=1, as_text=True)
        return TemplateAbilities(
            system=self._shows([system, user, answer], _A, _B, _C),
            later_system=self._shows([user, answer, system, user, answer], _C),
            repeated_roles=self._shows([user, {"role": "user", "content": _D}, answer], _A, _B, _D),
            tool_list=self._shows_tools(),
            tool_calls=object_calls or text_calls,
            parallel_calls=self._takes_calls(calls=2, as_text=text_calls),
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

    def _takes_calls(self, *, calls: int, as_text: bool) -> bool:
        numbers = [f"{number:05d}" for number in range(calls)]
        arguments = [{_C: f"{_D}{number}"} for number in numbers]
        asked = [
            {
                "id": f"call{number}",
                "type": "function",
                "function": {"name": f"{_B}{number}", "arguments": json.dumps(given) if as_text else given},
            }
            for number, given in zip(numbers, arguments, strict=True)
        ]
        answers = [
            {"role": "tool", "name": f"{_B}{number}", "tool_call_id": f"call{number}", "content": f"{_E}{number}"}
            for number in numbers
        ]
        messages: ChatMessages = [
            {"role": "user", "content": _A},
            {"role": "assistant", "content": "", "tool_calls": asked},
            *answers,
            {"role": "assistant", "content": f"{_A}{_B}"},
        ]
        words = [f"{word}{number}" for number in numbers for word in (_B, _D, _E)]
        # The listed tool has a name of its own, so that it cannot pass for the one that is called.
        return self._shows(messages, *words, _C, f"{_A}{_B}", tools=[probe_tool(_E, "parameter", "description")])

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
