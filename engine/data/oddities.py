"""What is worth knowing about a conversation that is kept all the same."""

from itertools import pairwise

from engine.data.conversation import Conversation, Example, Message, PlainText
from engine.data.problems import ProblemKind, shortened

Notice = tuple[ProblemKind, str]


def oddities_of(example: Example) -> tuple[Notice, ...]:
    """Look at the order of a conversation's turns: who speaks first, twice, to nobody, or says nothing."""
    if isinstance(example, PlainText):
        return ()
    roles = [message.role for message in example.messages]
    if not any(message.tool_calls for message in example.messages) and "tool" not in roles:
        turns = roles[1:] if roles[0] == "system" else roles
        alternate = all(role == ("user", "assistant")[index % 2] for index, role in enumerate(turns))
        if alternate and len(turns) % 2 == 0 and not any(map(_asks_nothing, example.messages)):
            return ()  # the common case
    return tuple(_look_closely(example))


def _asks_nothing(message: Message) -> bool:
    return message.role == "user" and (not message.content or message.content.isspace())


def _look_closely(conversation: Conversation) -> list[Notice]:
    messages = conversation.messages
    found: list[Notice] = []
    spoken = [message for message in messages if message.role != "system"]
    if spoken and spoken[0].role == "assistant":
        found.append(("order", "the assistant speaks first; nothing asks for that turn, so it is read and not learned"))
    for number, message in enumerate(messages, start=1):
        if _asks_nothing(message):
            found.append(("empty", f"turn {number} is the user's, and it is empty"))
    for number, (before, message) in enumerate(pairwise(messages), start=2):
        if message.role == before.role == "user":
            found.append(("order", f"turn {number} is the user's, and so is the one before it"))
        if before.tool_calls and message.role != "tool":
            called = ", ".join(shortened(call.name, 30) for call in before.tool_calls)
            found.append(("tools", f"the call of {called} in turn {number - 1} has no result"))
        if message.role == "tool" and before.role not in ("assistant", "tool"):
            found.append(("tools", f"turn {number} is the result of no call"))
    if messages[-1].role in ("user", "tool"):
        found.append(("unanswered", f"the last turn is the {messages[-1].role}'s; nothing answers it"))
    return found
