"""A row of any format into a conversation or plain text, or the reason why that cannot be done."""

import contextlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from engine.data.conversation import Conversation, Example, Message, PlainText, Role, ToolCall
from engine.data.formats.detect import Detection
from engine.data.formats.turns import conversation_column, looks_like_turns, turn_list
from engine.data.records import RowProblemError, describe_kind, shortened

ROLES: dict[str, Role] = {
    "human": "user",
    "user": "user",
    "prompter": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "system": "system",
    "developer": "system",
    "observation": "tool",
    "tool": "tool",
    "function": "tool",
    "ipython": "tool",
}

# Of one row. The longest conversations in use have some hundred; each turn takes time of its own.
MAX_TURNS = 5000

MAX_CALLS = 1000  # of one turn


class Converter:
    """Reads rows in one format.

    Args:
        detection: The format and the columns that hold it.
        turn_fields: Names of a turn's fields where they are not the usual ones.
    """

    def __init__(self, detection: Detection) -> None:
        self._format = detection.format
        self._columns = dict(detection.columns)
        self._role_fields = (self._columns.get("from", "from"), self._columns.get("role", "role"))
        self._content_fields = (self._columns.get("value", "value"), self._columns.get("content", "content"))

    def convert(self, value: Mapping[str, Any]) -> Example:
        """Read one row.

        Raises:
            RowProblemError: With the reason why nothing can be learned from it.
        """
        if self._format == "text":
            text = self._text(value, "text")
            if not text.strip():
                raise RowProblemError("empty", f"{self._columns['text']} is empty")
            return PlainText(text)
        if self._format == "alpaca":
            example = self._alpaca(value)
        elif self._format == "prompt_completion":
            example = self._prompt_completion(value)
        else:
            role = "conversations" if self._format == "sharegpt" else "messages"
            example = self._with_context(value, self._turns(self._required(value, role), self._columns[role]))
        if not any(message.role == "assistant" for message in example.messages):
            raise RowProblemError("no_assistant_turn", "there is no assistant turn to learn from")
        if all(message.is_empty for message in example.messages if message.role == "assistant"):
            raise RowProblemError("empty", "the answer is empty, so there is nothing to learn")
        return example

    def _alpaca(self, value: Mapping[str, Any]) -> Conversation:
        question = "\n\n".join(
            part
            for part in (self._text(value, "instruction"), self._text(value, "input", optional=True))
            if part.strip()
        )
        if not question:
            raise RowProblemError("empty", f"{self._columns['instruction']} is empty")
        answer = self._text(value, "output")
        turns: list[Message] = []
        for pair in self._history(value):
            turns.extend((Message("user", pair[0]), _answer(pair[1])))
        return self._with_context(value, [*turns, Message("user", question), _answer(answer)])

    def _history(self, value: Mapping[str, Any]) -> list[tuple[str, str]]:
        name = self._columns.get("history")
        history = value.get(name) if name else None
        if isinstance(history, str) and history.strip():  # a cell of a table
            with contextlib.suppress(ValueError, RecursionError):
                history = json.loads(history)
        if history in (None, "", []):
            return []
        good = isinstance(history, list) and all(
            isinstance(pair, list | tuple) and len(pair) == 2 and all(isinstance(said, str) for said in pair)
            for pair in history
        )
        if not good or not isinstance(history, list):
            raise RowProblemError("not_text", f"{name} is not a list of question and answer pairs")
        _refuse_endless(history, str(name))
        return [(pair[0], pair[1]) for pair in history]

    def _prompt_completion(self, value: Mapping[str, Any]) -> Conversation:
        prompt, completion = self._required(value, "prompt"), self._required(value, "completion")
        asked = (
            self._turns(prompt, self._columns["prompt"])
            if _is_turns(prompt)
            else [Message("user", self._text(value, "prompt"))]
        )
        answered = (
            self._turns(completion, self._columns["completion"])
            if _is_turns(completion)
            else [_answer(self._text(value, "completion"))]
        )
        whole = self._with_context(value, [*asked, *answered])
        return replace(whole, completion_start=len(whole.messages) - len(answered))

    def _with_context(self, value: Mapping[str, Any], turns: Sequence[Message]) -> Conversation:
        """Add the system and tools columns, where the format has them and the row fills them."""
        system = self._text(value, "system", optional=True)
        messages = list(turns)
        if system.strip():
            if messages and messages[0].role == "system":
                messages[0] = Message("system", f"{system}\n\n{messages[0].content}")
            else:
                messages.insert(0, Message("system", system))
        name = self._columns.get("tools")
        return Conversation(tuple(messages), _tools(value.get(name), name) if name else ())

    def _turns(self, turns: Any, column: str) -> list[Message]:
        if isinstance(turns, str) and turns.lstrip().startswith("["):
            turns = _parsed(turns, f"{column} is text, and not the JSON list of turns that it looks like")
        if not isinstance(turns, list):
            raise RowProblemError("not_text", f"{column} is {describe_kind(turns)}, not a list of turns")
        if not turns:
            raise RowProblemError("empty", f"{column} is an empty list")
        _refuse_endless(turns, column)
        messages: list[Message] = []
        for number, turn in enumerate(turns, start=1):
            message = self._turn(turn, number)
            last = messages[-1] if messages else None
            is_call_alone = last is not None and message.tool_calls and last.role == "assistant" and not message.content
            if last is not None and is_call_alone and last.is_learned == message.is_learned:
                # Words and the call that follows them are one turn of the assistant.
                messages[-1] = replace(last, tool_calls=(*last.tool_calls, *message.tool_calls))
            else:
                messages.append(message)
        return messages

    def _turn(self, turn: Any, number: int) -> Message:
        if not isinstance(turn, Mapping):
            raise RowProblemError(
                "not_an_object", f"turn {number} is {describe_kind(turn)}, not an object with role and content"
            )
        said = next((turn[name] for name in self._role_fields if name in turn), None)
        if said is None:
            raise RowProblemError("unknown_role", f"turn {number} has no role")
        tag = said.strip().lower() if isinstance(said, str) else ""
        if tag not in ROLES:
            raise RowProblemError("unknown_role", f"turn {number} has the unknown role {shortened(str(said), 30)!r}")
        role = ROLES[tag]
        content = next((turn[name] for name in self._content_fields if name in turn), None)
        is_learned = role != "assistant" or _is_learned(turn, number)
        if tag == "function_call":
            return Message("assistant", tool_calls=_calls_from(content, number), is_learned=is_learned)
        calls = _openai_calls(turn, number) if role == "assistant" else ()
        if content is None and not (calls or turn.get("reasoning_content")):
            raise RowProblemError("not_text", f"turn {number} has no content")
        words = "" if content is None else _content(content, number, role)
        if role == "tool":
            return Message(
                role,
                words,
                name=_optional_text(turn.get("name")),
                tool_call_id=_optional_text(turn.get("tool_call_id")),
            )
        if role != "assistant":
            return Message(role, words)
        message = replace(_answer(words), tool_calls=calls, is_learned=is_learned)
        reasoning = next(
            (turn[name] for name in ("reasoning_content", "thinking", "reasoning") if isinstance(turn.get(name), str)),
            None,
        )
        return replace(message, reasoning=reasoning) if reasoning and not message.reasoning else message

    def _required(self, value: Mapping[str, Any], role: str) -> Any:
        name = self._columns[role]
        if name not in value:
            wanted = name.strip().lower()
            name = next((other for other in value if other.strip().lower() == wanted), name)
        if name not in value:
            shown = ", ".join(shortened(column, 20) for column in list(value)[:6]) or "none"
            raise RowProblemError("missing_column", f"there is no {name}; the columns of this row are {shown}")
        return value[name]

    def _text(self, value: Mapping[str, Any], role: str, *, optional: bool = False) -> str:
        name = self._columns.get(role)
        if name is None:
            return ""
        found = value.get(name) if optional else self._required(value, role)
        is_missing = found is None or (isinstance(found, float) and math.isnan(found))  # pandas writes NaN for it
        if is_missing and optional:
            return ""
        if not isinstance(found, str):
            raise RowProblemError("not_text", f"{name} is {describe_kind(found)}, not text")
        return found


def _refuse_endless(turns: Sequence[Any], column: str) -> None:
    if len(turns) > MAX_TURNS:
        raise RowProblemError("too_long", f"{column} has {len(turns):,} turns; {MAX_TURNS:,} is the most")


def _is_turns(value: Any) -> bool:
    """Whether a prompt or completion is a list of turns, or text that says one as JSON."""
    if isinstance(value, str):
        return looks_like_turns(value) and conversation_column(turn_list(value)) is not None
    return isinstance(value, list)


def _is_learned(turn: Mapping[str, Any], number: int) -> bool:
    """What `weight` says of an assistant's turn: 1 is learned, 0 is only read.

    Source: OpenAI's guide to fine-tuning, "Multi-turn chat examples"; Mistral's has the same.
    """
    weight = turn.get("weight")
    if not isinstance(weight, int | float) or math.isnan(weight):  # a column that most rows leave empty
        return True
    if weight not in (0, 1):
        raise RowProblemError("weight", f"turn {number} has the weight {weight:g}; 1 is learned, and 0 is only read")
    return bool(weight)


def _answer(words: str) -> Message:
    """An assistant turn; a reasoning block that opens it becomes its reasoning."""
    opened = words.lstrip()
    if opened.startswith("<think>") and "</think>" in opened:
        reasoning, _, rest = opened.removeprefix("<think>").partition("</think>")
        return Message("assistant", rest.lstrip("\n"), reasoning=reasoning.strip() or None)
    return Message("assistant", words)


def _content(content: Any, number: int, role: Role) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        parts = []
        for part in content:
            if isinstance(part, str):
                parts.append(part)
            elif isinstance(part, Mapping) and isinstance(part.get("text"), str):
                parts.append(part["text"])
            else:
                kind = part.get("type") if isinstance(part, Mapping) else describe_kind(part)
                raise RowProblemError(
                    "not_text", f"turn {number} holds a part of type {shortened(str(kind), 30)}, not text"
                )
        return "".join(parts)
    if role == "tool" and isinstance(content, Mapping):
        return json.dumps(content, ensure_ascii=False)
    raise RowProblemError("not_text", f"the content of turn {number} is {describe_kind(content)}, not text")


def _calls_from(content: Any, number: int) -> tuple[ToolCall, ...]:
    """The calls of a ShareGPT function_call turn: an object or a list of them, usually as JSON text."""
    reason = f"the function call in turn {number} is not a JSON object with a name"
    parsed = _parsed(content, reason) if isinstance(content, str) else content
    calls = parsed if isinstance(parsed, list) else [parsed]
    if not calls:
        raise RowProblemError("tools", reason)
    _refuse_many_calls(calls, number)
    return tuple(_call(call, reason) for call in calls)


def _openai_calls(turn: Mapping[str, Any], number: int) -> tuple[ToolCall, ...]:
    calls = turn.get("tool_calls")
    if calls is None and isinstance(turn.get("function_call"), Mapping):
        calls = [turn["function_call"]]
    if not calls:
        return ()
    reason = f"a tool call in turn {number} has no function name"
    if not isinstance(calls, list):
        raise RowProblemError("tools", f"tool_calls of turn {number} is {describe_kind(calls)}, not a list")
    _refuse_many_calls(calls, number)
    return tuple(_call(call, reason) for call in calls)


def _refuse_many_calls(calls: Sequence[Any], number: int) -> None:
    if len(calls) > MAX_CALLS:
        raise RowProblemError("too_long", f"turn {number} makes {len(calls):,} calls; {MAX_CALLS:,} is the most")


def _call(call: Any, reason: str) -> ToolCall:
    function = call.get("function", call) if isinstance(call, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(name, str) or not name:
        raise RowProblemError("tools", reason)
    arguments = function.get("arguments", function.get("parameters", {}))
    if isinstance(arguments, str):
        with contextlib.suppress(ValueError, RecursionError):  # else kept as the text that it is
            arguments = json.loads(arguments)
    return ToolCall(name, {} if arguments is None else arguments, _optional_text(call.get("id")))


def _tools(tools: Any, column: str) -> tuple[Any, ...]:
    if isinstance(tools, str):
        if not tools.strip():
            return ()
        tools = _parsed(tools, f"{column} is not valid JSON")
    if tools is None:
        return ()
    listed = tools if isinstance(tools, list) else [tools]
    parsed = [_parsed(tool, f"{column} is not valid JSON") if isinstance(tool, str) else tool for tool in listed]
    if not all(isinstance(tool, Mapping) for tool in parsed):
        raise RowProblemError("tools", f"{column} is not a list of objects")
    return tuple(parsed)


def _parsed(text: str, reason: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RowProblemError("tools", f"{reason}: {shortened(text, 30)!r}") from error


def _optional_text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None
