"""A conversation in the terms of one chat template: its own where it has them, plain words where it has none.

What a template cannot express is written into the turns, in the Hermes convention that most open models know, and
nothing is lost silently: tools in the system turn, a call as `<tool_call>` in the assistant's turn, its result as
`<tool_response>` in a user's turn, reasoning as `<think>` before the answer. A system turn that a template does not take
opens the first user turn; turns of one role in a row become one, where a template wants roles to alternate.
"""

import itertools
import json
import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from engine.data.conversation import Conversation, Message, ToolCall
from engine.data.records import RowProblemError
from engine.data.render.template import ChatMessages, ChatTokenizer, apply_template, once_per_tokenizer


@dataclass(frozen=True)
class TemplateAbilities:
    """What a template takes as it is; what it does not take, `engine.data.render.adapt` puts into words."""

    system: bool = False
    later_system: bool = False  # a system turn in the middle
    repeated_roles: bool = False  # two turns of one role in a row
    tool_list: bool = False
    tool_calls: bool = False  # calls and their results
    parallel_calls: bool = False  # several calls in one turn
    text_arguments: bool = False  # joins a call's arguments as text, and fails on an object
    text_parts: bool = False  # wants content as a list of parts, and leaves out what is plain text
    reasoning: Literal["field", "inline", "none"] = "none"  # a field of its own, as <think> in the content, or cut out


_A, _B, _C, _D, _E = "Qa1xyz", "Wb2xyz", "Ec3xyz", "Rd4xyz", "Te5xyz"


@once_per_tokenizer
def abilities_of(tokenizer: ChatTokenizer) -> TemplateAbilities:
    """Find out what the template can express."""
    return _Probe(tokenizer).abilities()


class _Probe:
    """Renders short conversations of unmistakable words and looks which of them come out."""

    def __init__(self, tokenizer: ChatTokenizer) -> None:
        self._tokenizer = tokenizer
        self._text_parts = False

    def abilities(self) -> TemplateAbilities:
        user, answer, system = Message("user", _A), Message("assistant", _B), Message("system", _C)
        if not self._shows([user], _A):
            self._text_parts = True
            self._text_parts = self._shows([user], _A)
        object_calls = self._takes_calls(calls=1, as_text=False)
        text_calls = not object_calls and self._takes_calls(calls=1, as_text=True)
        return TemplateAbilities(
            system=self._shows([system, user, answer], _A, _B, _C),
            later_system=self._shows([user, answer, system, user, answer], _C),
            repeated_roles=self._shows([user, Message("user", _D), answer], _A, _B, _D),
            tool_list=self._shows([user], _A, _B, _C, _D, tools=[_probe_tool(_B, _C, _D)]),
            tool_calls=object_calls or text_calls,
            parallel_calls=self._takes_calls(calls=2, as_text=text_calls),
            text_arguments=text_calls,
            text_parts=self._text_parts,
            reasoning=self._reasoning([user, Message("assistant", _B, reasoning=_C)]),
        )

    def _shows(self, messages: Sequence[Message], *words: str, tools: list[Any] | None = None, **assumed: Any) -> bool:
        abilities = TemplateAbilities(text_parts=self._text_parts, **assumed)
        try:
            dicts = [_as_dict(message, abilities) for message in messages]
            text = apply_template(self._tokenizer, dicts, tools or [], prompt=False)
        except RowProblemError:
            return False
        return all(word in text for word in words)

    def _takes_calls(self, *, calls: int, as_text: bool) -> bool:
        numbers = [f"{number:05d}" for number in range(calls)]
        asked = tuple(ToolCall(f"{_B}{number}", {_C: f"{_D}{number}"}, f"call{number}") for number in numbers)
        results = [
            Message("tool", f"{_E}{number}", name=f"{_B}{number}", tool_call_id=f"call{number}") for number in numbers
        ]
        last = Message("assistant", f"{_A}{_B}")
        words = [f"{word}{number}" for number in numbers for word in (_B, _D, _E)]
        # The listed tool has another name, to be distinguished from the one that is called.
        tools = [_probe_tool(_E, "parameter", "description")]
        messages = [Message("user", _A), Message("assistant", tool_calls=asked), *results, last]
        return self._shows(messages, *words, _C, last.content, tools=tools, text_arguments=as_text)

    def _reasoning(self, messages: Sequence[Message]) -> Literal["field", "inline", "none"]:
        if self._shows(messages, _B, _C, reasoning="field"):
            return "field"
        return "inline" if self._shows(messages, _B, _C) else "none"


def _probe_tool(name: str, parameter: str, description: str) -> dict[str, Any]:
    properties = {parameter: {"type": "string", "description": description}}
    parameters = {"type": "object", "properties": properties, "required": [parameter]}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


_TOOLS_IN_WORDS = """# Tools

You may call one or more functions to assist with the user query. You are provided with function signatures within \
<tools></tools> XML tags:
<tools>
{tools}
</tools>"""

_CALLS_IN_WORDS = """

For each function call, return a JSON object with the function's name and arguments within <tool_call></tool_call> \
XML tags:
<tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call>"""


@dataclass(frozen=True)
class AdaptedConversation(Conversation):
    """A conversation as a template takes it; notes are what was changed."""

    notes: tuple[str, ...] = ()

    def for_template(self, abilities: TemplateAbilities) -> ChatMessages:
        """Return the messages as the dictionaries that chat templates read."""
        return [_as_dict(message, abilities) for message in self.messages]


def adapt_to_template(conversation: Conversation, abilities: TemplateAbilities) -> AdaptedConversation:
    """Put a conversation into the terms of a template."""
    steps = AdaptedConversation(conversation.messages, conversation.tools, conversation.completion_start)
    has_calls = any(message.tool_calls or message.role == "tool" for message in steps.messages)
    if steps.tools and not abilities.tool_list:
        steps = _tool_list_in_words(steps, how_to_call=not abilities.tool_calls)
    if has_calls:
        steps = _with_identified_calls(steps) if abilities.tool_calls else _calls_in_words(steps)
        if abilities.tool_calls and not abilities.parallel_calls:
            steps = _calls_one_by_one(steps)
    if any(message.role == "system" for message in steps.messages):
        steps = _with_accepted_system(steps, abilities)
    if not abilities.repeated_roles:
        steps = _with_merged_roles(steps)
    return steps


def tool_schema(tool: Any) -> Any:
    """Return a tool in the wrapping that templates expect: `{"type": "function", "function": {…}}`."""
    if isinstance(tool, dict) and "function" not in tool and "name" in tool:
        return {"type": "function", "function": tool}
    return tool


def call_in_words(call: ToolCall) -> str:
    """Return a call in the Hermes convention."""
    arguments = _arguments_in_words(call)
    return f'<tool_call>\n{{"name": {json.dumps(call.name)}, "arguments": {arguments}}}\n</tool_call>'


def _arguments_in_words(call: ToolCall) -> str:
    return call.arguments if isinstance(call.arguments, str) else json.dumps(call.arguments, ensure_ascii=False)


def _tool_list_in_words(steps: AdaptedConversation, *, how_to_call: bool) -> AdaptedConversation:
    listed = "\n".join(json.dumps(tool_schema(tool), ensure_ascii=False) for tool in steps.tools)
    words = _TOOLS_IN_WORDS.format(tools=listed) + (_CALLS_IN_WORDS if how_to_call else "")
    opening = [Message("system", words), *steps.messages[:1]]
    if len(opening) > 1 and opening[1].role == "system":
        opening = [replace(opening[1], content=f"{opening[1].content}\n\n{words}")]
    note = "The model's template lists no tools; they are written into the system turn (Hermes convention)."
    return replace(_rewritten(steps, [opening, *([message] for message in steps.messages[1:])], note), tools=())


def _calls_in_words(steps: AdaptedConversation) -> AdaptedConversation:
    pieces: list[list[Message]] = []
    responses: list[str] = []  # of tools, in a row
    for message, following in itertools.zip_longest(steps.messages, steps.messages[1:]):
        if message.tool_calls:
            words = "\n".join(call_in_words(call) for call in message.tool_calls)
            content = f"{message.content}\n{words}" if message.content else words
            pieces.append([replace(message, content=content, tool_calls=())])
        elif message.role != "tool":
            pieces.append([message])
        else:
            responses.append(f"<tool_response>\n{message.content}\n</tool_response>")
            if following is not None and following.role == "tool":
                pieces.append([])
            else:
                pieces.append([Message("user", "\n".join(responses))])
                responses = []
    note = "The model's template has no tool calls; they are written in words (Hermes convention)."
    return _rewritten(steps, pieces, note)


def _with_identified_calls(steps: AdaptedConversation) -> AdaptedConversation:
    """Give every call an id and every result the id and name of its call, for templates that print or demand them."""
    messages: list[Message] = []
    waiting: list[ToolCall] = []
    count = 0
    for message in steps.messages:
        if message.tool_calls:
            calls = []
            for call in message.tool_calls:
                calls.append(call if call.id else replace(call, id=f"call{count:05d}"))
                count += 1
            waiting = [*waiting, *calls] if messages and messages[-1].role == "assistant" else list(calls)
            messages.append(replace(message, tool_calls=tuple(calls)))
        elif message.role == "tool":
            asked = next((call for call in waiting if call.id == message.tool_call_id), waiting[0] if waiting else None)
            if asked is not None:
                waiting.remove(asked)
                message = replace(message, tool_call_id=asked.id, name=message.name or asked.name)
            messages.append(message)
        else:
            waiting = []
            messages.append(message)
    return replace(steps, messages=tuple(messages))


def _calls_one_by_one(steps: AdaptedConversation) -> AdaptedConversation:
    """Split a turn of several calls into call, result, call, result, for templates that take one call at a time."""
    pieces: list[list[Message]] = []
    while len(pieces) < len(steps.messages):
        message = steps.messages[len(pieces)]
        if len(message.tool_calls) < 2:
            pieces.append([message])
            continue
        following = steps.messages[len(pieces) + 1 :]
        results = list(itertools.takewhile(lambda turn: turn.role == "tool", following))
        split: list[Message] = []
        for position, call in enumerate(message.tool_calls):
            turn = message if position == 0 else Message("assistant", is_learned=message.is_learned)
            split.append(replace(turn, tool_calls=(call,)))
            split.extend(result for result in results if result.tool_call_id == call.id)
        pieces += [*([] for _ in results), split]
    note = "The model's template takes one tool call at a time; turns with several are split."
    return _rewritten(steps, pieces, note)


def _with_accepted_system(steps: AdaptedConversation, abilities: TemplateAbilities) -> AdaptedConversation:
    """Move system turns that the template does not take into the user turn that follows."""
    pieces: list[list[Message]] = []
    held: list[str] = []
    for index, message in enumerate(steps.messages):
        accepted = abilities.system if index == 0 else abilities.later_system
        if message.role == "system" and not accepted:
            held.append(message.content)
            pieces.append([])
            continue
        if not held:
            pieces.append([message])
        elif message.role == "user":
            pieces.append([replace(message, content="\n\n".join([*held, message.content]))])
        else:
            pieces.append([Message("user", "\n\n".join(held)), message])
        held = []
    if held:
        pieces.append([Message("user", "\n\n".join(held))])
    note = "The model's template does not take a system turn there; its words open the user's turn that follows."
    return _rewritten(steps, pieces, note)


def _with_merged_roles(steps: AdaptedConversation) -> AdaptedConversation:
    """Join turns of one role; the joined one is trained only if all of them are."""
    groups: list[list[Message]] = []
    for index, message in enumerate(steps.messages):
        last = groups[-1][-1] if groups and index != steps.completion_start else None
        is_plain = not message.tool_calls and message.role in ("user", "assistant")
        if last is not None and is_plain and last.role == message.role and not last.tool_calls:
            groups[-1].append(message)
        else:
            groups.append([message])
    # Of a group, the joined message takes the place of the last; joined at once, in time that grows with the words alone.
    pieces: list[list[Message]] = []
    for group in groups:
        pieces += [[]] * (len(group) - 1)
        pieces.append([_joined(group)])
    note = "The model's template wants roles to alternate; turns of one role in a row are joined."
    return _rewritten(steps, pieces, note)


def _joined(group: Sequence[Message]) -> Message:
    if len(group) == 1:
        return group[0]
    content = "\n\n".join(message.content for message in group)
    return replace(group[0], content=content, is_learned=all(message.is_learned for message in group))


def _rewritten(steps: AdaptedConversation, pieces: Sequence[Sequence[Message]], note: str) -> AdaptedConversation:
    """Return a conversation of other messages, where `pieces[i]` is what message i became."""
    messages = tuple(itertools.chain.from_iterable(pieces))
    if messages == steps.messages:
        return steps
    start = steps.completion_start
    completion = sum(map(len, pieces[:start])) if start is not None else None
    return replace(steps, messages=messages, completion_start=completion, notes=(*steps.notes, note))


def _as_dict(message: Message, abilities: TemplateAbilities) -> dict[str, Any]:
    entry: dict[str, Any] = {"role": message.role, "content": message.content}
    reasoning = (message.reasoning or "").strip()
    if reasoning and abilities.reasoning == "field":
        entry["reasoning_content"] = reasoning
    elif reasoning:
        entry["content"] = f"<think>\n{reasoning}\n</think>\n\n{message.content}"
    if abilities.text_parts:  # for templates of models that also take pictures
        entry["content"] = [{"type": "text", "text": entry["content"]}]
    if message.tool_calls:
        arguments = _arguments_in_words if abilities.text_arguments else operator.attrgetter("arguments")
        entry["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments(call)}}
            for call in message.tool_calls
        ]
    if message.role == "tool":
        entry |= {"tool_call_id": message.tool_call_id, "name": message.name}
        entry = {key: value for key, value in entry.items() if value is not None}
    return entry
