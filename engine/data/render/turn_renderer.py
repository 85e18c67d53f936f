"""One conversation under one chat template, rendered up to any of its turns.

A turn is proved by two renderings of the whole conversation up to it, which for each turn of a long conversation takes
time that grows with the square of its turns. Only the first turns of a long one, and some of the rest, are rendered in
whole. Those between are rendered with the beginning of the conversation and a few turns before them, and what they add, one
after the other, has to be exactly what the whole conversation has there.
"""

import itertools
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from engine.data.conversation import RowWarning
from engine.data.records import RowProblemError, shortened
from engine.data.render.adapt import AdaptedConversation, abilities_of, tool_schema
from engine.data.render.template import ChatMessages, ChatTokenizer, apply_template

_WHOLE_TURNS = 32  # at the beginning; later ones are rendered in whole each time the number of turns has grown by half
_WINDOW_TURNS = 4
_MAX_WORK = 150_000  # about two seconds: messages rendered, of all renderings of a row
_CHARACTERS_OF_WORK = 2_000  # that take as long as a message: long lists of tools are rendered each time
_OPENED_TAG = re.compile(r"<([a-z_]+)>\s*$")
_CLOSED_TAG = re.compile(r"<([a-z_]+)>\s*</\1>\s*$")


@dataclass(frozen=True, slots=True)
class Turn:
    """One assistant turn: its prompt, and the answer to train on."""

    base: str  # begins with the conversation before the turn; turns of one conversation share it
    base_length: int  # where in it that ends
    answer: str
    call: str = ""  # how the template calls for an answer, where it takes that away again once there is one

    @property
    def prompt(self) -> str:
        """The prompt that the chat would send."""
        return self.base[: self.base_length] + self.call

    @property
    def start(self) -> int:
        """Length of the prompt in characters."""
        return self.base_length + len(self.call)


class TurnRenderer:
    """Renders one conversation, which is in the template's terms."""

    def __init__(self, adapted: AdaptedConversation, tokenizer: ChatTokenizer) -> None:
        self._messages = adapted.messages
        self._tokenizer = tokenizer
        self._dicts = adapted.for_template(abilities_of(tokenizer))
        self._tools = [tool_schema(tool) for tool in adapted.tools]
        self._without_reasoning: set[int] = set()  # turns whose reasoning the template's prompt excludes
        questions = (index for index, message in enumerate(self._messages) if message.role != "assistant")
        self._first_asked = next(questions, len(self._messages))
        self._head = self._second_question()  # messages that every window begins with
        self._work = 0  # of all renderings so far

    def text(self, count: int) -> str:
        """Return the first `count` messages."""
        return self._render(self._dicts[:count], prompt=False)

    def prompt(self, count: int) -> str:
        """Return the same with the template's generation prompt."""
        return self._render(self._dicts[:count], prompt=True)

    def turns(self, indexes: Sequence[int]) -> Iterator[Turn | None]:
        """Yield prompt and answer of assistant turns, in order; None where nothing comes before one to answer.

        Raises:
            RowProblemError: If the template refuses one, or rendering takes too long.
        """
        number = 0
        before: Turn | None = None
        windows_hold = True
        while number < len(indexes):
            block: Sequence[Turn | None] = ()
            if windows_hold and number >= _WHOLE_TURNS and before is not None:
                block = self._block(indexes[number - 1 : number + max(1, number // 2)], before)
                windows_hold = bool(block)
            block = block or [self.turn(indexes[number])]
            yield from block
            before = block[-1]
            number += len(block)

    def turn(self, index: int) -> Turn | None:
        """Return the assistant turn at `index`, by the whole conversation up to it."""
        if self._first_asked >= index:
            return None
        prompt = self.prompt(index)
        return Turn(prompt, len(prompt), self._answer(prompt, 0, index))

    def left_out(self, text: str) -> tuple[RowWarning, ...]:
        """Return turns whose words do not come out of the template, and special tokens in people's words."""
        losses: list[RowWarning] = []
        place = 0
        for number, message in enumerate(self._messages, start=1):
            words = message.content.strip()
            if not words or (number == len(self._messages) and message.role != "assistant"):
                continue
            position = text.find(words, place)
            if position >= 0:  # nearly always, and near
                place = position + len(words)
            elif words not in text and json.dumps(words)[1:-1] not in text:
                name = f"turn {number} ({message.role}: {shortened(words, 30)!r})"
                losses.append(("template_leaves_out", f"{name} is left out or changed by the model's chat template"))
        losses.extend(
            ("template_leaves_out", f"the reasoning of turn {index + 1} is left out: the template answers without any")
            for index in sorted(self._without_reasoning)
        )
        return tuple(losses)

    def _block(self, indexes: Sequence[int], before: Turn) -> list[Turn]:
        """Return turns proved by windows, the last of them in whole too; none where windows and whole do not agree.

        The first index is that of the turn before them, which is `before`.
        """
        prompts: list[tuple[str, str]] = []  # of a turn before, and of the turn itself
        answers: list[str] = []
        anchor, shown = 0, ""
        try:
            for number, (previous, index) in enumerate(itertools.pairwise(indexes)):
                if number % _WINDOW_TURNS == 0:
                    anchor = self._question_before(previous)
                    if anchor <= self._head:
                        return []
                    shown = self._render(self._window(anchor, previous), prompt=True)
                prompt = self._render(self._window(anchor, index), prompt=True)
                prompts.append((shown, prompt))
                answers.append(self._answer(prompt, anchor, index))
                shown = prompt
            last = self.turn(indexes[-1])
        except RowProblemError:
            return []
        size = max(len(shown) - _shared_length(shown, prompt) for shown, prompt in prompts)
        call = before.prompt[before.start - size :]
        if last is None or last.answer != answers[-1] or not all(prompt.endswith(call) for _, prompt in prompts):
            return []
        pieces = [prompt[len(shown) - size : len(prompt) - size] for shown, prompt in prompts]
        joined = before.prompt[: before.start - size] + "".join(pieces)
        if last.base != joined + call:
            return []
        ends = itertools.accumulate(map(len, pieces), initial=before.start - size)
        return [
            Turn(joined, end, answer, call)
            for end, answer in zip(itertools.islice(ends, 1, None), answers, strict=True)
        ]

    def _answer(self, prompt: str, anchor: int, index: int) -> str:
        """Return what the turn at `index` adds to its prompt, which renders the window of that anchor up to the turn."""
        message = self._messages[index]
        whole = self._render(self._window(anchor, index + 1), prompt=False)
        if whole.startswith(prompt):
            return self._with_reasoning(whole[len(prompt) :], index)
        shared = _shared_length(prompt, whole)
        if not prompt[shared:].strip():
            return self._with_reasoning(whole[shared:].lstrip(), index)
        tag = _OPENED_TAG.search(prompt)
        if tag is not None and whole.startswith(prompt[: tag.start()]):
            # The prompt opens a reasoning block that the rendered turn lacks: close it, filled or empty.
            reasoning = (message.reasoning or "").strip("\n")
            answer = whole[tag.start() :].lstrip("\n")
            return f"{reasoning}\n</{tag[1]}>\n\n{answer}"
        if message.reasoning and _CLOSED_TAG.search(prompt) and index not in self._without_reasoning:
            # The prompt ends the reasoning before the answer begins: this template answers without.
            self._without_reasoning.add(index)
            bare = {key: value for key, value in self._dicts[index].items() if key != "reasoning_content"}
            self._dicts[index] = bare | {"content": message.content}
            return self._answer(prompt, anchor, index)
        raise RowProblemError(
            "template",
            f"the model's chat template asks for an answer with {shortened(prompt[shared:], 40)!r}, "
            "yet begins answers otherwise",
        )

    def _window(self, anchor: int, count: int) -> ChatMessages:
        """Return the first messages, and those from `anchor` up to `count`."""
        return self._dicts[:count] if anchor == 0 else self._dicts[: self._head] + self._dicts[anchor:count]

    def _second_question(self) -> int:
        roles = [message.role for message in self._messages]
        first_answer = roles.index("assistant") if "assistant" in roles else len(roles)
        return roles.index("user", first_answer) if "user" in roles[first_answer:] else len(roles)

    def _question_before(self, index: int) -> int:
        before = range(index - 1, -1, -1)
        return next((place for place in before if self._messages[place].role == "user"), 0)

    def _render(self, messages: ChatMessages, *, prompt: bool) -> str:
        if self._work > _MAX_WORK:
            raise RowProblemError(
                "too_long", f"its {len(self._messages):,} turns take too long to render with the model's chat template"
            )
        text = apply_template(self._tokenizer, messages, self._tools, prompt=prompt)
        self._work += len(messages) + len(text) // _CHARACTERS_OF_WORK
        return text

    def _with_reasoning(self, answer: str, index: int) -> str:
        """Put the reasoning before an answer if the template removed it."""
        reasoning = (self._messages[index].reasoning or "").strip()
        if not reasoning or reasoning in answer or index in self._without_reasoning:
            return answer
        return f"<think>\n{reasoning}\n</think>\n\n{answer}"


def _shared_length(first: str, second: str) -> int:
    length = min(len(first), len(second))
    if first[:length] == second[:length]:
        return length
    low, high = 0, length
    while low < high:
        middle = (low + high + 1) // 2
        if first[:middle] == second[:middle]:
            low = middle
        else:
            high = middle - 1
    return low
