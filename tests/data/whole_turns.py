"""How turns were proved before long conversations were rendered in windows: each by the whole conversation up to it.

The reference for tests: the same plan for the same conversation, in time that grows with the square of its turns.
"""

import json
import re
from dataclasses import dataclass

from engine.config.run import TrainOn
from engine.data.conversation import Conversation, RowWarning
from engine.data.records import RowProblemError, shortened
from engine.data.render.adapt import AdaptedConversation, abilities_of, adapt_to_template, tool_schema
from engine.data.render.sequence_plan import _chosen_turns, _special_tokens_in_words
from engine.data.render.template import ChatTokenizer, apply_template, control_token_texts

_LOOK_EVERY_TURNS = 8
_OPENED_TAG = re.compile(r"<([a-z_]+)>\s*$")
_CLOSED_TAG = re.compile(r"<([a-z_]+)>\s*</\1>\s*$")


@dataclass(frozen=True)
class Turn:
    """One assistant turn: what the chat would send to get it, and what the model should answer."""

    prompt: str
    answer: str


@dataclass(frozen=True)
class SequencePlan:
    """Text of one training sequence. `trained` are the turns whose answers count, the last of them ending the text."""

    text: str
    trained: tuple[Turn, ...]  # in order; empty where everything counts
    plain: bool = False  # plain text, to which the tokenizer adds what it adds by itself


@dataclass(frozen=True)
class RowPlan:
    """All sequences of a row, with what is worth knowing about them."""

    sequences: tuple[SequencePlan, ...]
    notes: tuple[str, ...] = ()  # about the template: the same for many rows
    notices: tuple[RowWarning, ...] = ()  # about this row
    beyond_tokens: int = 0  # about how many tokens would be trained on turns that lie beyond max_length
    whole: SequencePlan | None = None  # the sequence of the last of those turns: to be measured, and not trained


def plan_conversation(
    conversation: Conversation, tokenizer: ChatTokenizer, train_on: TrainOn, max_length: int | None = None
) -> RowPlan:
    """Decide the sequences of a conversation.

    Args:
        conversation: Of any length.
        tokenizer: With a frozen template.
        train_on: Which turns are trained.
        max_length: Turns that lie beyond it are not looked at: proving a turn takes longer the later it stands.

    Raises:
        RowProblemError: If the template refuses the row, or no turn of it can be trained.
    """
    adapted = adapt_to_template(conversation, abilities_of(tokenizer))
    renderer = _Renderer(adapted, tokenizer)
    notices = _special_tokens_in_words(conversation, tokenizer)
    if train_on == "all":
        text = renderer.text(len(adapted.messages))
        return RowPlan((SequencePlan(text, ()),), adapted.notes, notices + renderer.left_out(text))
    chosen = _chosen_turns(adapted, train_on)
    turns: list[Turn] = []
    beyond: list[int] = []
    for number, index in enumerate(chosen):
        if number % _LOOK_EVERY_TURNS == 0 and turns and _is_longer(turns[-1].prompt, tokenizer, max_length):
            beyond = chosen[number:]
            break
        turn = renderer.turn(index)
        if turn is not None:
            turns.append(turn)
    if not turns:
        marked = any(not message.is_trained for message in adapted.messages)
        reason = "every assistant turn has weight 0" if marked else "every assistant turn is empty"
        raise RowProblemError("nothing_to_learn", reason)
    sequences = _share_sequences(turns, tokenizer)
    if beyond:  # the text ends early, and says nothing about what the template leaves out
        rest = "\n".join(adapted.messages[index].content for index in beyond)
        beyond_tokens = len(tokenizer(rest, add_special_tokens=False)["input_ids"])
        return RowPlan(sequences, adapted.notes, notices, beyond_tokens, _sequence_of(beyond[-1], renderer))
    return RowPlan(sequences, adapted.notes, notices + renderer.left_out(sequences[-1].text))


def _sequence_of(index: int, renderer: "_Renderer") -> SequencePlan | None:
    """The sequence of one turn alone; None where the template refuses a turn that no one is to learn anyway."""
    try:
        turn = renderer.turn(index)
    except RowProblemError:
        return None
    return SequencePlan(turn.prompt + turn.answer, (turn,)) if turn is not None else None


def _is_longer(text: str, tokenizer: ChatTokenizer, max_length: int | None) -> bool:
    if max_length is None:
        return False
    return len(text) > max_length and len(tokenizer(text, add_special_tokens=False)["input_ids"]) > max_length


class _Renderer:
    """One conversation under one template, rendered up to any of its turns."""

    def __init__(self, adapted: AdaptedConversation, tokenizer: ChatTokenizer) -> None:
        self._messages = adapted.messages
        self._tokenizer = tokenizer
        self._dicts = adapted.for_template(abilities_of(tokenizer))
        self._tools = [tool_schema(tool) for tool in adapted.tools]
        self._without_reasoning: set[int] = set()  # turns whose reasoning the template's prompt does not let them say

    def text(self, count: int) -> str:
        return apply_template(self._tokenizer, self._dicts[:count], self._tools, prompt=False)

    def prompt(self, count: int) -> str:
        return apply_template(self._tokenizer, self._dicts[:count], self._tools, prompt=True)

    def turn(self, index: int) -> Turn | None:
        """The prompt and answer of the assistant turn at `index`; None where nothing comes before it to answer."""
        if all(message.role == "assistant" for message in self._messages[:index]):
            return None
        message = self._messages[index]
        prompt, whole = self.prompt(index), self.text(index + 1)
        if whole.startswith(prompt):
            return Turn(prompt, self._with_reasoning(whole[len(prompt) :], index))
        shared = _shared_length(prompt, whole)
        if not prompt[shared:].strip():
            return Turn(prompt, self._with_reasoning(whole[shared:].lstrip(), index))
        opened = _OPENED_TAG.search(prompt)
        if opened is not None and whole.startswith(prompt[: opened.start()]):
            # The prompt opens a reasoning block that the rendered turn lacks: close it, filled or empty.
            reasoning = (message.reasoning or "").strip("\n")
            answer = whole[opened.start() :].lstrip("\n")
            return Turn(prompt, f"{reasoning}\n</{opened[1]}>\n\n{answer}")
        if message.reasoning and _CLOSED_TAG.search(prompt) and index not in self._without_reasoning:
            # The prompt ends the reasoning before the answer begins: this template answers without.
            self._without_reasoning.add(index)
            bare = {key: value for key, value in self._dicts[index].items() if key != "reasoning_content"}
            self._dicts[index] = bare | {"content": message.content}
            return self.turn(index)
        raise RowProblemError(
            "template",
            f"the model's chat template asks for an answer with {shortened(prompt[shared:], 40)!r}, "
            "yet begins answers otherwise",
        )

    def left_out(self, text: str) -> tuple[RowWarning, ...]:
        """Turns whose words do not come out of the template, and special tokens in people's words."""
        lost: list[RowWarning] = []
        for number, message in enumerate(self._messages, start=1):
            words = message.content.strip()
            is_after_the_end = number == len(self._messages) and message.role != "assistant"
            if words and not is_after_the_end and words not in text and json.dumps(words)[1:-1] not in text:
                shown = f"turn {number} ({message.role}: {shortened(words, 30)!r})"
                lost.append(("template_leaves_out", f"{shown} is left out or changed by the model's chat template"))
        lost.extend(
            ("template_leaves_out", f"the reasoning of turn {index + 1} is left out: the template answers without any")
            for index in sorted(self._without_reasoning)
        )
        return tuple(lost)

    def _with_reasoning(self, answer: str, index: int) -> str:
        """Put the reasoning before an answer whose template cut it out."""
        reasoning = (self._messages[index].reasoning or "").strip()
        if not reasoning or reasoning in answer or index in self._without_reasoning:
            return answer
        return f"<think>\n{reasoning}\n</think>\n\n{answer}"


def _share_sequences(turns: list[Turn], tokenizer: ChatTokenizer) -> tuple[SequencePlan, ...]:
    """Group turns into as few sequences as the proof allows, in the order of their last turns."""
    sequences: list[SequencePlan] = []
    remaining = turns
    while remaining:
        last = remaining[-1]
        text = last.prompt + last.answer
        trained: list[Turn] = []
        apart: list[Turn] = []
        for turn in remaining[:-1]:
            fitting = _as_in(text, turn, tokenizer)
            if fitting is None:
                apart.append(turn)
            else:
                trained.append(fitting)
        sequences.append(SequencePlan(text, (*trained, last)))
        remaining = apart
    return tuple(reversed(sequences))


def _as_in(text: str, turn: Turn, tokenizer: ChatTokenizer) -> Turn | None:
    """The turn as it stands in a longer text, or None where the text holds something else."""
    if not text.startswith(turn.prompt):
        return None
    if text.startswith(turn.answer, len(turn.prompt)):
        return turn
    # Phi-3's template closes only the whole text with eos, after the turn's own end.
    eos = tokenizer.eos_token
    if eos and turn.answer.endswith(eos):
        shorter = Turn(turn.prompt, turn.answer[: -len(eos)])
        ends_itself = shorter.answer.rstrip().endswith(control_token_texts(tokenizer))
        if ends_itself and text.startswith(shorter.answer, len(turn.prompt)):
            return shorter
    return None


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
