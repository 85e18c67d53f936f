"""The text of a conversation, and which part of it is trained; verified turn by turn.

For each assistant turn the template renders twice: the prompt that the chat will send at that point, and the
conversation up to and with the turn. The turn's answer is what the second adds to the first. Turns share one sequence
only where its text holds, character by character, each turn's own prompt followed by its own answer. A template that
rewrites earlier turns (Qwen3 drops their reasoning, gpt-oss ends them otherwise) fails that proof, and such turns get
sequences of their own: nothing is masked by guesswork.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from loratory.engine.config.run import TrainOn
from loratory.engine.data.conversation import IMAGE_MARK, Conversation, ImageRef, RowWarning
from loratory.engine.data.records import RowProblemError, one_line, shared_length
from loratory.engine.data.render.adapt import (
    AdaptedConversation,
    abilities_of,
    adapt_to_template,
    message_dict,
    tool_schema,
)
from loratory.engine.data.render.images import images_of, refuse_reserved, require_supported_images
from loratory.engine.data.render.template import (
    ChatTokenizer,
    apply_template,
    control_token_pattern,
    control_token_texts,
    ids_of,
)

_MAX_CHARACTERS = 8 << 20  # of all sequences of a row; as tokens they take some thirty times as many bytes
# About two seconds: messages of all renderings of a row, of which there are two for each turn.
_MAX_RENDERED_MESSAGES = 150_000
_CHARACTERS_OF_A_MESSAGE = 2_000  # that take as long: long lists of tools are rendered each time
_TAKES_TOO_LONG = "take too long to render with the model's chat template"
_OPENED_TAG = re.compile(r"<([a-z_]+)>\s*$")
_CLOSED_TAG = re.compile(r"<([a-z_]+)>\s*</\1>\s*$")


@dataclass(frozen=True, slots=True)
class RenderedTurn:
    """One assistant turn: the prompt that the chat would send, and the answer to train on."""

    prompt: str
    answer: str
    images: tuple[ImageRef, ...] = ()  # of both, in order


@dataclass(frozen=True)
class SequencePlan:
    """Text of one training sequence. `trained` are the turns whose answers count, the last of them ending the text."""

    text: str
    trained: tuple[RenderedTurn, ...]  # in order; empty where everything counts
    plain: bool = False  # plain text, encoded with the tokenizer's own special tokens
    is_prompt: bool = False  # to be answered: nothing counts
    images: tuple[ImageRef, ...] = ()  # of the text, in order

    @classmethod
    def of_turns(cls, trained: Sequence[RenderedTurn]) -> "SequencePlan":
        """Return the sequence that ends with the last of these turns."""
        last = trained[-1]
        return cls(last.prompt + last.answer, tuple(trained), images=last.images)


@dataclass(frozen=True)
class PlannedRow:
    """All sequences of a row, with notes about them."""

    sequences: tuple[SequencePlan, ...]
    notes: tuple[str, ...] = ()  # about the template: the same for many rows
    notices: tuple[RowWarning, ...] = ()  # about this row
    beyond_tokens: int = 0  # about how many tokens would be trained on turns that lie beyond max_length
    whole: SequencePlan | None = None  # the sequence of the last of those turns: to be measured, and not trained


def plan_conversation(
    conversation: Conversation, tokenizer: ChatTokenizer, train_on: TrainOn, max_length: int | None = None
) -> PlannedRow:
    """Decide the sequences of a conversation.

    Turns beyond max_length are not rendered: verifying a turn takes longer the later it comes. After some 270 answers, the
    rest of a conversation is left out as well.

    Raises:
        RowProblemError: If the template refuses the row, or no turn of it can be trained.
    """
    adaptation = adapt_to_template(conversation, abilities_of(tokenizer))
    renderer = TurnRenderer(adaptation, tokenizer)
    notices = _special_token_warnings(conversation, tokenizer)
    if train_on == "all":
        text = renderer.render(len(adaptation.messages), prompt=False)
        sequence = SequencePlan(text, (), images=images_of(adaptation.messages))
        return PlannedRow((sequence,), adaptation.notes, notices + renderer.omission_warnings(text))
    turns, beyond, warnings = _render_turns(_chosen_turns(adaptation, train_on), renderer, tokenizer, max_length)
    if not turns:
        has_marks = any(not message.is_trained for message in adaptation.messages)
        reason = "every assistant turn has weight 0" if has_marks else "every assistant turn is empty"
        raise RowProblemError("nothing_to_learn", reason)
    sequences = _share_sequences(turns, tokenizer)
    if not beyond:
        return PlannedRow(sequences, adaptation.notes, notices + renderer.omission_warnings(sequences[-1].text))
    # The text ends early, and does not show what the template leaves out.
    rest = "\n".join(adaptation.messages[index].content for index in beyond)
    whole = _sequence_of(beyond[-1], renderer)
    return PlannedRow(sequences, adaptation.notes, notices + warnings, len(ids_of(rest, tokenizer)), whole)


def _render_turns(
    targets: Sequence[int], renderer: "TurnRenderer", tokenizer: ChatTokenizer, max_length: int | None
) -> tuple[list[RenderedTurn], Sequence[int], tuple[RowWarning, ...]]:
    """Render turns in order, up to max_length or until it takes too long.

    Returns:
        The turns; the indices of those that are left; and a warning if rendering them would take too long.
    """
    turns: list[RenderedTurn] = []
    measured = 0  # characters of the longest prompt whose tokens were counted
    for number, index in enumerate(targets):
        # Counted each time it has grown by half, which takes a few times as long as counting it once.
        if turns and max_length is not None and len(turns[-1].prompt) > max(max_length, 1.5 * measured):
            measured = len(turns[-1].prompt)
            if len(ids_of(turns[-1].prompt, tokenizer)) > max_length:
                return turns, targets[number:], ()
        try:
            turn = renderer.turn(index)
        except RowProblemError:
            if not turns or not renderer.is_spent:
                raise
            reason = f"only its first {len(turns):,} answers are trained: the later ones {_TAKES_TOO_LONG}"
            return turns, targets[number:], (("too_long", reason),)
        if turn is not None:
            turns.append(turn)
    return turns, (), ()


def plan_text(text: str, tokenizer: ChatTokenizer) -> PlannedRow:
    """Return plain text as one sequence that ends with the end-of-sequence token."""
    eos = tokenizer.eos_token or ""
    refuse_reserved(text, tokenizer)
    text = text if eos and text.endswith(eos) else text + eos
    return PlannedRow((SequencePlan(text, (), plain=True),))


def plan_prompt(conversation: Conversation, tokenizer: ChatTokenizer) -> SequencePlan:
    """Return the prompt of the next answer: the conversation, and the template's generation prompt.

    Raises:
        RowProblemError: If the template refuses the conversation.
    """
    adaptation = adapt_to_template(conversation, abilities_of(tokenizer))
    text = TurnRenderer(adaptation, tokenizer).render(len(adaptation.messages), prompt=True)
    return SequencePlan(text, (), is_prompt=True, images=images_of(adaptation.messages))


def trained_turns(conversation: Conversation, train_on: TrainOn) -> tuple[int, ...]:
    """Return the indices of trained turns by the conversation alone, without rendering a template."""
    messages = conversation.messages
    if train_on == "all":
        return tuple(range(len(messages)))
    first_question = next(
        (index for index, message in enumerate(messages) if message.role != "assistant"), len(messages)
    )
    # An opening assistant turn is context only: nothing asks for it.
    return tuple(index for index in _chosen_turns(conversation, train_on) if index > first_question)


def _chosen_turns(conversation: Conversation, train_on: TrainOn) -> list[int]:
    """Return the indices of assistant turns that are trained; turns of weight 0 are not."""
    messages = conversation.messages
    answers = [index for index, message in enumerate(messages) if message.role == "assistant" and not message.is_empty]
    start = 0
    if train_on == "last_assistant":
        answers = answers[-1:]
    elif train_on == "completion" and conversation.completion_start is not None:
        start = conversation.completion_start
    elif train_on == "completion" and answers:
        questions = (index for index in range(answers[-1], -1, -1) if messages[index].role == "user")
        start = next(questions, -1) + 1
    return [index for index in answers if index >= start and messages[index].is_trained]


def _special_token_warnings(conversation: Conversation, tokenizer: ChatTokenizer) -> tuple[RowWarning, ...]:
    """Warn about control tokens in the data itself, which the model reads as such."""
    pattern = control_token_pattern(tokenizer)
    matches = (
        (number, turn.role, pattern.search(turn.content)) for number, turn in enumerate(conversation.messages, 1)
    )
    return tuple(
        ("special_token", f"turn {number} ({role}) holds {match.group()}, which the model reads as a special token")
        for number, role, match in matches
        if match is not None
    )


def _sequence_of(index: int, renderer: "TurnRenderer") -> SequencePlan | None:
    """Return the sequence of one turn alone; None where the template refuses it, as it is not trained anyway."""
    try:
        turn = renderer.turn(index)
    except RowProblemError:
        return None
    return SequencePlan.of_turns([turn]) if turn is not None else None


def _share_sequences(turns: list[RenderedTurn], tokenizer: ChatTokenizer) -> tuple[SequencePlan, ...]:
    """Group turns into as few sequences as verification allows, in the order of their last turns."""
    sequences: list[SequencePlan] = []
    remaining = turns
    size = 0
    while remaining:
        last = remaining[-1]
        text = last.prompt + last.answer
        size += len(text)
        if size > _MAX_CHARACTERS:
            raise RowProblemError(
                "too_long",
                f"the model's chat template rewrites earlier turns, so each of {len(turns):,} turns needs the conversation "
                f"up to it: more than {_MAX_CHARACTERS >> 20} million characters",
            )
        trained: list[RenderedTurn] = []
        apart: list[RenderedTurn] = []
        for turn in remaining[:-1]:
            fitting = _as_in(text, turn, tokenizer)
            if fitting is None:
                apart.append(turn)
            else:
                trained.append(fitting)
        sequences.append(SequencePlan.of_turns([*trained, last]))
        remaining = apart
    return tuple(reversed(sequences))


def _as_in(text: str, turn: RenderedTurn, tokenizer: ChatTokenizer) -> RenderedTurn | None:
    """Return the turn as it is in the text of a later one, or None where that text differs."""
    if not text.startswith(turn.prompt):
        return None
    start = len(turn.prompt)
    if text.startswith(turn.answer, start):
        return turn
    # Some templates, such as Phi-3's, close only the whole text with eos, after the turn's own end.
    shorter = turn.answer.removesuffix(tokenizer.eos_token or "")
    ends_itself = shorter.rstrip().endswith(control_token_texts(tokenizer))
    return replace(turn, answer=shorter) if ends_itself and text.startswith(shorter, start) else None


class TurnRenderer:
    """Renders one conversation, which is in the template's terms, up to any of its turns."""

    def __init__(self, adaptation: AdaptedConversation, tokenizer: ChatTokenizer) -> None:
        self._messages = adaptation.messages
        self._tokenizer = tokenizer
        self._dicts = adaptation.for_template(abilities_of(tokenizer))
        self._tools = [tool_schema(tool) for tool in adaptation.tools]
        self._without_reasoning: set[int] = set()  # turns whose reasoning the template's prompt excludes
        questions = (index for index, message in enumerate(self._messages) if message.role != "assistant")
        self._first_question = next(questions, len(self._messages))
        self._rendered_messages = 0
        require_supported_images(self._messages, self._tools, tokenizer)

    @property
    def is_spent(self) -> bool:
        """Whether rendering has taken as long as it may for one row."""
        return self._rendered_messages > _MAX_RENDERED_MESSAGES

    def render(self, count: int, *, prompt: bool) -> str:
        """Return the text of the first `count` messages; with the generation prompt, that of a `prompt`.

        Raises:
            RowProblemError: If the template refuses it, or rendering takes too long.
        """
        if self.is_spent:
            raise RowProblemError("too_long", f"its {len(self._messages):,} turns {_TAKES_TOO_LONG}")
        images = images_of(self._messages[:count])
        text = apply_template(self._tokenizer, self._dicts[:count], self._tools, prompt=prompt, images=images)
        self._rendered_messages += count + len(text) // _CHARACTERS_OF_A_MESSAGE
        return text

    def turn(self, index: int) -> RenderedTurn | None:
        """Return prompt and answer of an assistant turn; None where nothing comes before it to answer.

        Raises:
            RowProblemError: If the template refuses it, or rendering takes too long.
        """
        if self._first_question >= index:
            return None
        message = self._messages[index]
        prompt, whole = self.render(index, prompt=True), self.render(index + 1, prompt=False)
        images = images_of(self._messages[: index + 1])
        if whole.startswith(prompt):
            return RenderedTurn(prompt, self._with_reasoning(whole[len(prompt) :], index), images)
        shared = shared_length(prompt, whole)
        if not prompt[shared:].strip():
            return RenderedTurn(prompt, self._with_reasoning(whole[shared:].lstrip(), index), images)
        tag = _OPENED_TAG.search(prompt)
        if tag is not None and whole.startswith(prompt[: tag.start()]):
            # The prompt opens a reasoning block that the rendered turn lacks: close it, filled or empty.
            reasoning = (message.reasoning or "").strip("\n")
            answer = whole[tag.start() :].lstrip("\n")
            return RenderedTurn(prompt, f"{reasoning}\n</{tag[1]}>\n\n{answer}", images)
        if message.reasoning and _CLOSED_TAG.search(prompt) and index not in self._without_reasoning:
            # The prompt ends the reasoning before the answer begins: this template answers without.
            self._without_reasoning.add(index)
            self._dicts[index] = message_dict(replace(message, reasoning=None), abilities_of(self._tokenizer))
            return self.turn(index)
        raise RowProblemError(
            "template",
            f"the model's chat template asks for an answer with {one_line(prompt[shared:], 40)!r}, "
            "yet begins answers otherwise",
        )

    def omission_warnings(self, text: str) -> tuple[RowWarning, ...]:
        """Return the turns whose text the template leaves out or changes."""
        losses: list[RowWarning] = []
        start = 0
        for number, message in enumerate(self._messages, start=1):
            if number == len(self._messages) and message.role != "assistant":
                continue
            for content in filter(None, map(str.strip, message.content.split(IMAGE_MARK))):
                position = text.find(content, start)
                if position >= 0:  # nearly always, and near
                    start = position + len(content)
                elif content not in text and json.dumps(content)[1:-1] not in text:
                    name = f"turn {number} ({message.role}: {one_line(content, 30)!r})"
                    reason = f"{name} is left out or changed by the model's chat template"
                    losses.append(("template_leaves_out", reason))
        losses.extend(
            ("template_leaves_out", f"the reasoning of turn {index + 1} is left out: the template answers without any")
            for index in sorted(self._without_reasoning)
        )
        return tuple(losses)

    def _with_reasoning(self, answer: str, index: int) -> str:
        """Put the reasoning before an answer if the template removed it."""
        reasoning = (self._messages[index].reasoning or "").strip()
        if not reasoning or reasoning in answer or index in self._without_reasoning:
            return answer
        return f"<think>\n{reasoning}\n</think>\n\n{answer}"
