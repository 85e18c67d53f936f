"""Adapt a conversation to a chat template: use its features, and plain text for what it does not support.

Unsupported parts are written into the turns in the Hermes convention, which most open models know, with a note: tools in
the system turn, a call as `<tool_call>` in the assistant's turn, its result as `<tool_response>` in a user's turn,
reasoning as `<think>` before the answer. An unsupported system turn starts the first user turn, and consecutive turns of
one role are joined if the template requires alternating roles.
"""

import itertools
import json
import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from loratory.engine.data.conversation import IMAGE_MARK, Conversation, Message, ToolCall
from loratory.engine.data.records import RowProblemError
from loratory.engine.data.render.images import image_text_of
from loratory.engine.data.render.template import (
    ChatMessages,
    ChatTokenizer,
    apply_template,
    once_per_tokenizer,
)


@dataclass(frozen=True)
class TemplateAbilities:
    """The features that a template supports; `loratory.engine.data.render.adapt` replaces the rest by text."""

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
    """Detect what the template supports, by rendering short conversations with unique words."""

    def shows(messages: Sequence[Message], *texts: str, tools: Sequence[Any] = (), **settings: Any) -> bool:
        abilities = TemplateAbilities(**{"text_parts": text_parts, **settings})
        try:
            dicts = [message_dict(message, abilities) for message in messages]
            rendered_text = apply_template(tokenizer, dicts, list(tools), prompt=False)
        except RowProblemError:
            return False
        return all(text in rendered_text for text in texts)

    def takes_calls(count: int, *, as_text: bool) -> bool:
        numbers = [f"{number:05d}" for number in range(count)]
        calls = tuple(ToolCall(f"{_B}{number}", {_C: f"{_D}{number}"}, f"call{number}") for number in numbers)
        results = [
            Message("tool", f"{_E}{number}", name=f"{_B}{number}", tool_call_id=f"call{number}") for number in numbers
        ]
        last = Message("assistant", f"{_A}{_B}")
        texts = [f"{text}{number}" for number in numbers for text in (_B, _D, _E)]
        # The listed tool has another name, to be distinguished from the one that is called.
        tools = [_probe_tool(_E, "parameter", "description")]
        messages = [user, Message("assistant", tool_calls=calls), *results, last]
        return shows(messages, *texts, _C, last.content, tools=tools, text_arguments=as_text)

    user, answer, system = Message("user", _A), Message("assistant", _B), Message("system", _C)
    turns = [user, Message("assistant", _B, reasoning=_C)]
    text_parts = False
    # Templates of models that take images get parts always, as TRL gives them.
    takes_parts = image_text_of(tokenizer) is not None or not shows([user], _A)
    text_parts = takes_parts and shows([user], _A, text_parts=True)
    object_calls = takes_calls(1, as_text=False)
    text_calls = not object_calls and takes_calls(1, as_text=True)
    inline: Literal["inline", "none"] = "inline" if shows(turns, _B, _C) else "none"
    return TemplateAbilities(
        system=shows([system, user, answer], _A, _B, _C),
        later_system=shows([user, answer, system, user, answer], _C),
        repeated_roles=shows([user, Message("user", _D), answer], _A, _B, _D),
        tool_list=shows([user], _A, _B, _C, _D, tools=[_probe_tool(_B, _C, _D)]),
        tool_calls=object_calls or text_calls,
        parallel_calls=takes_calls(2, as_text=text_calls),
        text_arguments=text_calls,
        text_parts=text_parts,
        reasoning="field" if shows(turns, _B, _C, reasoning="field") else inline,
    )


def _probe_tool(name: str, parameter: str, description: str) -> dict[str, Any]:
    properties = {parameter: {"type": "string", "description": description}}
    parameters = {"type": "object", "properties": properties, "required": [parameter]}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


_TOOLS_TEXT = """# Tools

You may call one or more functions to assist with the user query. You are provided with function signatures within \
<tools></tools> XML tags:
<tools>
{tools}
</tools>"""

_CALLS_TEXT = """

For each function call, return a JSON object with the function's name and arguments within <tool_call></tool_call> \
XML tags:
<tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call>"""


@dataclass(frozen=True)
class AdaptedConversation(Conversation):
    """A conversation for a template; notes describe the changes."""

    notes: tuple[str, ...] = ()

    def for_template(self, abilities: TemplateAbilities) -> ChatMessages:
        """Return the messages as dictionaries, as chat templates read them."""
        return [message_dict(message, abilities) for message in self.messages]


def adapt_to_template(conversation: Conversation, abilities: TemplateAbilities) -> AdaptedConversation:
    """Adapt a conversation to a template."""
    steps = AdaptedConversation(conversation.messages, conversation.tools, conversation.completion_start)
    has_calls = any(message.tool_calls or message.role == "tool" for message in steps.messages)
    if steps.tools and not abilities.tool_list:
        steps = _tool_list_as_text(steps, how_to_call=not abilities.tool_calls)
    if has_calls:
        steps = _with_identified_calls(steps) if abilities.tool_calls else _calls_as_text(steps)
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


def _arguments_as_text(call: ToolCall) -> str:
    return call.arguments if isinstance(call.arguments, str) else json.dumps(call.arguments, ensure_ascii=False)


def _tool_list_as_text(steps: AdaptedConversation, *, how_to_call: bool) -> AdaptedConversation:
    tools = "\n".join(json.dumps(tool_schema(tool), ensure_ascii=False) for tool in steps.tools)
    content = _TOOLS_TEXT.format(tools=tools) + (_CALLS_TEXT if how_to_call else "")
    opening = [Message("system", content), *steps.messages[:1]]
    if len(opening) > 1 and opening[1].role == "system":
        opening = [replace(opening[1], content=f"{opening[1].content}\n\n{content}")]
    note = "The model's template lists no tools; they are written into the system turn (Hermes convention)."
    return replace(_rewritten(steps, [opening, *([message] for message in steps.messages[1:])], note), tools=())


def _calls_as_text(steps: AdaptedConversation) -> AdaptedConversation:
    pieces: list[list[Message]] = []
    responses: list[Message] = []  # of tools, in a row
    for message, following in itertools.zip_longest(steps.messages, steps.messages[1:]):
        if message.tool_calls:
            calls = "\n".join(
                f'<tool_call>\n{{"name": {json.dumps(call.name)}, "arguments": {_arguments_as_text(call)}}}\n</tool_call>'
                for call in message.tool_calls
            )
            content = f"{message.content}\n{calls}" if message.content else calls
            pieces.append([replace(message, content=content, tool_calls=())])
        elif message.role != "tool":
            pieces.append([message])
        else:
            content = f"<tool_response>\n{message.content}\n</tool_response>"
            responses.append(Message("user", content, images=message.images))
            if following is not None and following.role == "tool":
                pieces.append([])
            else:
                pieces.append([_joined(responses, responses[0], "\n")])
                responses = []
    note = "The model's template has no tool calls; they are written as text (Hermes convention)."
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
            message = replace(message, tool_calls=tuple(calls))
        elif message.role == "tool":
            answered_call = next(
                (call for call in waiting if call.id == message.tool_call_id), waiting[0] if waiting else None
            )
            if answered_call is not None:
                waiting.remove(answered_call)
                message = replace(message, tool_call_id=answered_call.id, name=message.name or answered_call.name)
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
        turns: list[Message] = []
        for position, call in enumerate(message.tool_calls):
            turn = message if position == 0 else Message("assistant", is_trained=message.is_trained)
            turns.append(replace(turn, tool_calls=(call,)))
            turns.extend(result for result in results if result.tool_call_id == call.id)
        pieces += [*([] for _ in results), turns]
    note = "The model's template takes one tool call at a time; turns with several are split."
    return _rewritten(steps, pieces, note)


def _with_accepted_system(steps: AdaptedConversation, abilities: TemplateAbilities) -> AdaptedConversation:
    """Move unsupported system turns into the next user turn."""
    pieces: list[list[Message]] = []
    moved: list[Message] = []
    for index, message in enumerate(steps.messages):
        accepted = abilities.system if index == 0 else abilities.later_system
        if message.role == "system" and not accepted:
            moved.append(Message("user", message.content, images=message.images))
            pieces.append([])
            continue
        if not moved:
            pieces.append([message])
        elif message.role == "user":
            pieces.append([_joined([*moved, message], message)])
        else:
            pieces.append([_joined(moved, moved[0]), message])
        moved = []
    if moved:
        pieces.append([_joined(moved, moved[0])])
    note = "The model's template does not take a system turn there; its text starts the next user turn."
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
    pieces: list[list[Message]] = []
    for group in groups:
        joined = _joined(group, group[0]) if len(group) > 1 else group[0]  # at once, in linear time
        pieces += [*([] for _ in group[1:]), [joined]]  # at the position of the last
    note = "The model's template wants roles to alternate; turns of one role in a row are joined."
    return _rewritten(steps, pieces, note)


def _rewritten(steps: AdaptedConversation, pieces: Sequence[Sequence[Message]], note: str) -> AdaptedConversation:
    """Return the conversation with other messages, where `pieces[i]` replaces message i."""
    messages = tuple(itertools.chain.from_iterable(pieces))
    if messages == steps.messages:
        return steps
    start = steps.completion_start
    completion = sum(map(len, pieces[:start])) if start is not None else None
    return replace(steps, messages=messages, completion_start=completion, notes=(*steps.notes, note))


def _joined(messages: Sequence[Message], like: Message, separator: str = "\n\n") -> Message:
    """Join turns into one like one of them; it is trained only if all of them are."""
    return replace(
        like,
        content=separator.join(message.content for message in messages),
        images=tuple(image for message in messages for image in message.images),
        is_trained=all(message.is_trained for message in messages),
    )


def message_dict(message: Message, abilities: TemplateAbilities) -> dict[str, Any]:
    """Return a message as chat templates read it."""
    entry: dict[str, Any] = {"role": message.role, "content": message.content}
    reasoning = (message.reasoning or "").strip()
    if reasoning and abilities.reasoning == "field":
        entry["reasoning_content"] = reasoning
    elif reasoning:
        entry["content"] = f"<think>\n{reasoning}\n</think>\n\n{message.content}"
    if abilities.text_parts:  # for templates of models that also take images
        entry["content"] = _parts(entry["content"])
    if message.tool_calls:
        arguments = _arguments_as_text if abilities.text_arguments else operator.attrgetter("arguments")
        entry["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments(call)}}
            for call in message.tool_calls
        ]
    if message.role == "tool":
        entry |= {"tool_call_id": message.tool_call_id, "name": message.name}
        entry = {key: value for key, value in entry.items() if value is not None}
    return entry


def _parts(content: str) -> list[dict[str, str]]:
    """Return content as parts: text, and images where the marks are."""
    parts: list[dict[str, str]] = []
    for index, text in enumerate(content.split(IMAGE_MARK)):
        if index:
            parts.append({"type": "image"})
        if text:
            parts.append({"type": "text", "text": text})
    return parts or [{"type": "text", "text": ""}]
