"""The text of a conversation, and which part of it is trained; verified turn by turn.

For each assistant turn the template is asked twice: for the prompt that the chat will send at that point, and for the
conversation up to and with the turn. The turn's answer is what the second adds to the first. Turns share one sequence
only where its text holds, character by character, each turn's own prompt followed by its own answer. Of a long conversation
`engine.data.render.turn_renderer` asks for a bounded number of turns in whole, and proves those between by the turns around them. A template that
rewrites earlier turns (Qwen3 drops their reasoning, gpt-oss ends them otherwise) fails that proof, and such turns get
sequences of their own: nothing is masked by guesswork.
"""

from dataclasses import dataclass, replace

from engine.config.run import TrainOn
from engine.data.conversation import Conversation, PlainText, RowWarning
from engine.data.records import RowProblemError
from engine.data.render.adapt import abilities_of, adapt_to_template
from engine.data.render.encoded import answer_in
from engine.data.render.template import ChatTokenizer, control_token_pattern, ids_of
from engine.data.render.turn_renderer import Turn, TurnRenderer

_LOOK_EVERY_TURNS = 8
_MAX_CHARACTERS = 8 << 20  # of all sequences of a row; as tokens they take some thirty times as many bytes


@dataclass(frozen=True)
class SequencePlan:
    """Text of one training sequence. `trained` are the turns whose answers count, the last of them ending the text."""

    text: str
    trained: tuple[Turn, ...]  # in order; empty where everything counts
    plain: bool = False  # plain text, to which the tokenizer adds what it adds by itself


@dataclass(frozen=True)
class RowPlan:
    """All sequences of a row, with notes about them."""

    sequences: tuple[SequencePlan, ...]
    notes: tuple[str, ...] = ()  # about the template: the same for many rows
    notices: tuple[RowWarning, ...] = ()  # about this row
    beyond_tokens: int = 0  # about how many tokens would be trained on turns that lie beyond max_length
    whole: SequencePlan | None = None  # the sequence of the last of those turns: to be measured, and not trained


def plan_conversation(
    conversation: Conversation, tokenizer: ChatTokenizer, train_on: TrainOn, max_length: int | None = None
) -> RowPlan:
    """Decide the sequences of a conversation.

    Turns beyond max_length are not rendered: verifying a turn takes longer the later it comes.

    Raises:
        RowProblemError: If the template refuses the row, or no turn of it can be trained.
    """
    adapted = adapt_to_template(conversation, abilities_of(tokenizer))
    renderer = TurnRenderer(adapted, tokenizer)
    notices = _special_tokens_in_words(conversation, tokenizer)
    if train_on == "all":
        text = renderer.text(len(adapted.messages))
        return RowPlan((SequencePlan(text, ()),), adapted.notes, notices + renderer.left_out(text))
    targets = _chosen_turns(adapted, train_on)
    turns: list[Turn] = []
    beyond: list[int] = []
    length = _Length(tokenizer, max_length)
    rendered = renderer.turns(targets)
    for number in range(len(targets)):
        if number % _LOOK_EVERY_TURNS == 0 and turns and length.is_exceeded_by(turns[-1]):
            beyond = targets[number:]
            break
        turn = next(rendered)
        if turn is not None:
            turns.append(turn)
    if not turns:
        has_marks = any(not message.is_trained for message in adapted.messages)
        reason = "every assistant turn has weight 0" if has_marks else "every assistant turn is empty"
        raise RowProblemError("nothing_to_learn", reason)
    sequences = _share_sequences(turns, tokenizer)
    if beyond:  # the text ends early, and does not show what the template leaves out
        rest = "\n".join(adapted.messages[index].content for index in beyond)
        whole = _sequence_of(beyond[-1], renderer)
        return RowPlan(sequences, adapted.notes, notices, len(ids_of(rest, tokenizer)), whole)
    return RowPlan(sequences, adapted.notes, notices + renderer.left_out(sequences[-1].text))


def plan_text(plain: PlainText, tokenizer: ChatTokenizer) -> RowPlan:
    """Return plain text as one sequence that ends with the end-of-sequence token."""
    eos = tokenizer.eos_token or ""
    text = plain.content if eos and plain.content.endswith(eos) else plain.content + eos
    return RowPlan((SequencePlan(text, (), plain=True),))


def prompt_text(conversation: Conversation, tokenizer: ChatTokenizer) -> str:
    """Return the prompt of the next answer: the conversation, and the template's generation prompt.

    Raises:
        RowProblemError: If the template refuses the conversation.
    """
    adapted = adapt_to_template(conversation, abilities_of(tokenizer))
    return TurnRenderer(adapted, tokenizer).prompt(len(adapted.messages))


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


def _special_tokens_in_words(conversation: Conversation, tokenizer: ChatTokenizer) -> tuple[RowWarning, ...]:
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


def _sequence_of(index: int, renderer: TurnRenderer) -> SequencePlan | None:
    """Return the sequence of one turn alone; None where the template refuses it, as it is not trained anyway."""
    try:
        turn = renderer.turn(index)
    except RowProblemError:
        return None
    return SequencePlan(turn.prompt + turn.answer, (turn,)) if turn is not None else None


class _Length:
    """Return whether prompts, each a prefix of the next, are longer than max_length; counted incrementally."""

    def __init__(self, tokenizer: ChatTokenizer, max_length: int | None) -> None:
        self._tokenizer = tokenizer
        self._max_length = max_length
        self._characters = self._tokens = 0  # counted so far, to within some tokens

    def is_exceeded_by(self, turn: Turn) -> bool:
        if self._max_length is None or turn.start <= self._max_length:
            return False
        self._tokens += len(ids_of(turn.base[self._characters : turn.base_length], self._tokenizer))
        self._characters = turn.base_length
        # Tokens that reach across where counting stopped are miscounted, by a few of a hundred.
        return self._tokens > 0.9 * self._max_length and (len(ids_of(turn.prompt, self._tokenizer)) > self._max_length)


def _share_sequences(turns: list[Turn], tokenizer: ChatTokenizer) -> tuple[SequencePlan, ...]:
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
        trained: list[Turn] = []
        apart: list[Turn] = []
        for turn in remaining[:-1]:
            fitting = _as_in(text, last, turn, tokenizer)
            if fitting is None:
                apart.append(turn)
            else:
                trained.append(fitting)
        sequences.append(SequencePlan(text, (*trained, last)))
        remaining = apart
    return tuple(reversed(sequences))


def _as_in(text: str, last: Turn, turn: Turn, tokenizer: ChatTokenizer) -> Turn | None:
    """Return the turn as it is in the text of a later one, or None where that text differs."""
    if turn.base is not last.base:
        is_beginning = text.startswith(turn.prompt)
    else:
        is_beginning = turn.base_length <= last.base_length and text.startswith(turn.call, turn.base_length)
    answer = answer_in(text, turn.start, turn.answer, tokenizer) if is_beginning else None
    return replace(turn, answer=answer) if answer is not None else None
