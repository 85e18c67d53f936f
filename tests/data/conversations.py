"""Conversations that the tests of rendering share, and the trained tokens of a rendered row."""

import dataclasses

from loratory.engine.data.conversation import Conversation, Message, ToolCall
from loratory.engine.data.records import RowProblemError
from loratory.engine.data.render.tokenize import IGNORED_LABEL, RenderOptions, render_many

ALL = RenderOptions(None)


def render_conversation(row, example, tokenizer, options):
    """Render a row, or raise the reason why it cannot be trained on."""
    (rendering,) = render_many([(row, example)], tokenizer, options)
    if isinstance(rendering, RowProblemError):
        raise rendering
    return rendering


def talk(*contents, system=None, **last):
    """Return a conversation of alternating turns, the user first; `last` are fields of its last turn."""
    roles = ("user", "assistant") * len(contents)
    messages = [Message(role, content) for role, content in zip(roles, contents, strict=False)]
    messages[-1] = dataclasses.replace(messages[-1], **last)
    return Conversation((*((Message("system", system),) if system else ()), *messages))


CONVERSATIONS = {
    "one turn": talk("What does alpha do?", "It scales the update."),
    "two turns": talk("What does alpha do?", "It scales.", "And the rank?", "It bounds the capacity."),
    "a system turn": talk("One?", "Two.", "Three?", "Four.", "Five?", "Six.", system="Answer in one word."),
    "white space at the edges": talk("  One? \n", "\n\n Two \n ", "\n", " Three"),
    "other scripts": talk("¿Qué? 語 😀", "Ça va 😀😀", "\u2028\u00a0", "語"),
}
TOOLS = (
    {
        "name": "find_rank",
        "description": "Finds a rank",
        "parameters": {"type": "object", "properties": {"task": {"type": "string", "description": "What for"}}},
    },
)
WITH_TOOLS = Conversation(
    (
        Message("user", "Which rank for chat?"),
        Message("assistant", tool_calls=(ToolCall("find_rank", {"task": "chat-task"}),)),
        Message("tool", '{"rank": 16}'),
        Message("assistant", "Sixteen."),
        Message("user", "And for code?"),
        Message("assistant", tool_calls=(ToolCall("find_rank", {"task": "code-task"}),)),
        Message("tool", '{"rank": 64}'),
        Message("assistant", "Sixty-four."),
    ),
    TOOLS,
)


def spans(row):
    """Return runs of trained tokens: (index of the first, index after the last)."""
    matches = []
    start = None
    for index, label in enumerate([*row.labels, IGNORED_LABEL]):
        if label != IGNORED_LABEL and start is None:
            start = index
        elif label == IGNORED_LABEL and start is not None:
            matches.append((start, index))
            start = None
    return matches
