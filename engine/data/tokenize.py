"""The one renderer: a row becomes text, `input_ids` and `labels`, for the preview, the checks, the trainer and the chat."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from engine.config.dataset import TrainOn
from engine.data.conversation import Conversation, Example, Message, PlainText
from engine.data.problems import ProblemKind, RowProblemError
from engine.data.template import control_token_ids
from engine.data.tokenizer import ChatTokenizer
from engine.data.turns import SequencePlan, Turn, plan_conversation, plan_text, prompt_text

IGNORED_LABEL = -100  # what PyTorch's cross entropy leaves out


@dataclass(frozen=True)
class RenderOptions:
    """The settings that decide what is learned from a row."""

    max_length: int
    train_on: TrainOn = "assistant"


@dataclass(frozen=True)
class TokenizedRow:
    """One training sequence. `labels[i]` is `input_ids[i]` where the token is learned, else -100."""

    row: int  # of the dataset, from 0
    part: int  # from 0: a row whose turns cannot share one text has several sequences
    input_ids: list[int]
    labels: list[int]

    @property
    def trained_tokens(self) -> int:
        return sum(label != IGNORED_LABEL for label in self.labels)


@dataclass(frozen=True)
class RenderedRow(TokenizedRow):
    """A training sequence with everything that a person wants to see of it; cut at `max_length` as training does."""

    text: str  # before the cut
    tokens: list[str]  # as the vocabulary spells them
    pieces: list[str]  # the text that each token stands for; joined, the text up to the cut
    special: list[bool]  # control tokens
    uncut_tokens: int  # length before the cut
    lost_trained_tokens: int = 0  # learned tokens beyond the cut


@dataclass(frozen=True)
class Rendering:
    """All sequences of one row."""

    rows: tuple[RenderedRow, ...]
    notes: tuple[str, ...] = ()
    notices: tuple[tuple[ProblemKind, str], ...] = ()


@dataclass
class _Encoded:
    """A tokenized text: ids, and from which to which character each token reaches."""

    text: str
    ids: list[int] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)


def render_conversation(row: int, example: Example, tokenizer: ChatTokenizer, options: RenderOptions) -> Rendering:
    """Turn one row into what the model is trained on.

    Args:
        row: Number of the row in the dataset, carried through.
        example: From `engine.data.convert`.
        tokenizer: With a frozen template.
        options: What counts, and where to cut.

    Returns:
        One sequence, or several where the template rewrites earlier turns.

    Raises:
        RowProblemError: If the template refuses the row, if nothing in it can be learned, or if the cut leaves nothing.
    """
    if isinstance(example, PlainText):
        plan = plan_text(example, tokenizer)
    else:
        plan = plan_conversation(example, tokenizer, options.train_on)
    pending = list(plan.sequences)
    rendered: list[RenderedRow] = []
    lost = 0
    for part, sequence in enumerate(pending):
        encoded, trained, apart = _encode_sequence(sequence, tokenizer, plain=isinstance(example, PlainText))
        pending.extend(SequencePlan(turn.prompt + turn.answer, (turn,)) for turn in apart)
        ids = encoded.ids[: options.max_length]
        labels = [
            token if learned else IGNORED_LABEL
            for token, learned in zip(ids, trained[: options.max_length], strict=True)
        ]
        lost_here = sum(trained[options.max_length :])
        lost += lost_here
        if not any(trained[: options.max_length]):
            continue
        controls = control_token_ids(tokenizer)
        rendered.append(
            RenderedRow(
                row=row,
                part=part,
                input_ids=ids,
                labels=labels,
                text=encoded.text,
                tokens=tokenizer.convert_ids_to_tokens(ids),
                pieces=_pieces(encoded, len(ids)),
                special=[token in controls for token in ids],
                uncut_tokens=len(encoded.ids),
                lost_trained_tokens=lost_here,
            )
        )
    if not rendered:
        if lost:
            raise RowProblemError(
                "cut_away",
                f"everything to learn lies beyond max_length: the answer begins after {options.max_length:,} tokens",
            )
        raise RowProblemError("nothing_to_learn", "no token of it would be learned")
    return Rendering(tuple(rendered), plan.notes, plan.notices)


def prompt_ids(messages: Sequence[Message], tokenizer: ChatTokenizer, tools: Sequence[object] = ()) -> list[int]:
    """The chat's prompt: exactly what stood before the answer in training, for the same conversation so far.

    Raises:
        RowProblemError: If the template refuses the conversation.
    """
    text = prompt_text(Conversation(tuple(messages), tuple(tools)), tokenizer)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _encode_sequence(
    sequence: SequencePlan, tokenizer: ChatTokenizer, *, plain: bool
) -> tuple[_Encoded, list[bool], list[Turn]]:
    """Tokenize a planned sequence.

    Returns:
        The tokens; which of them are learned; and turns whose prompt, tokenized by itself, gives other tokens than those
        in this sequence, so that they need one of their own.
    """
    if sequence.everything:
        encoded = _encode(sequence.text, tokenizer, add_special_tokens=plain)
        return encoded, [True] * len(encoded.ids), []
    *earlier, last = sequence.learned
    boundary = len(last.prompt)
    encoded = _encode(sequence.text, tokenizer)
    start = _boundary_token(encoded, boundary, tokenizer)
    if start is None:
        # A token reaches across the end of the prompt. The chat sends the prompt by itself, so it is tokenized by itself.
        encoded = _encode(last.prompt, tokenizer)
        start = len(encoded.ids)
        _append(encoded, last.answer, tokenizer)
    trained = [False] * len(encoded.ids)
    end = _learned_end(encoded, start, len(encoded.ids), tokenizer)
    if end is None:
        _append(encoded, tokenizer.eos_token or "", tokenizer)
        end = len(encoded.ids)
        trained.extend([False] * (end - len(trained)))
    trained[start:end] = [True] * (end - start)
    apart: list[Turn] = []
    for turn in earlier:
        first = _boundary_token(encoded, len(turn.prompt), tokenizer)
        after = bisect_left(encoded.starts, len(turn.prompt) + len(turn.answer))
        if first is None:
            apart.append(turn)
            continue
        until = _learned_end(encoded, first, after, tokenizer)
        until = after if until is None else until
        trained[first:until] = [True] * (until - first)
    return encoded, trained, apart


def _encode(text: str, tokenizer: ChatTokenizer, *, add_special_tokens: bool = False) -> _Encoded:
    encoding = tokenizer(text, add_special_tokens=add_special_tokens, return_offsets_mapping=True)
    offsets = encoding["offset_mapping"]
    return _Encoded(text, list(encoding["input_ids"]), [start for start, _ in offsets], [end for _, end in offsets])


def _append(encoded: _Encoded, text: str, tokenizer: ChatTokenizer) -> None:
    """Add the tokens of `text`, tokenized as what follows other text and not as a beginning of its own."""
    marker = "\n"
    lead = len(tokenizer(marker, add_special_tokens=False)["input_ids"])
    following = _encode(marker + text, tokenizer)
    if len(following.starts) > lead and following.starts[lead] == len(marker):
        shift = len(encoded.text) - len(marker)
    else:
        lead, shift, following = 0, len(encoded.text), _encode(text, tokenizer)
    encoded.text += text
    encoded.ids.extend(following.ids[lead:])
    encoded.starts.extend(start + shift for start in following.starts[lead:])
    encoded.ends.extend(end + shift for end in following.ends[lead:])


def _boundary_token(encoded: _Encoded, boundary: int, tokenizer: ChatTokenizer) -> int | None:
    """Index of the token that begins at character `boundary`, if the tokens before it are those of that text alone."""
    first = bisect_left(encoded.starts, boundary)
    if first < len(encoded.starts) and encoded.starts[first] != boundary:
        return None
    if first and encoded.ends[first - 1] > boundary:
        return None
    # Control tokens split a text before anything else is merged, so it is enough to compare from the last one on.
    controls = control_token_ids(tokenizer)
    back = first - 1
    while back > 0 and encoded.ids[back] not in controls:
        back -= 1
    back = max(back, 0)
    alone = _ids_of(_Hashable(tokenizer), encoded.text[encoded.starts[back] if first else 0 : boundary])
    return first if list(alone) == encoded.ids[back:first] else None


@dataclass(frozen=True)
class _Hashable:
    tokenizer: ChatTokenizer

    def __hash__(self) -> int:
        return id(self.tokenizer)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Hashable) and self.tokenizer is other.tokenizer


@lru_cache(maxsize=4096)
def _ids_of(key: _Hashable, text: str) -> tuple[int, ...]:
    return tuple(key.tokenizer(text, add_special_tokens=False)["input_ids"])


def _learned_end(encoded: _Encoded, first: int, after: int, tokenizer: ChatTokenizer) -> int | None:
    """Where an answer's learned tokens end: after the token that ends the turn; white space that follows is the template's.

    None if no control token ends the turn.
    """
    controls = control_token_ids(tokenizer)
    end = after
    while end > first:
        token = encoded.ids[end - 1]
        if token in controls:
            return end
        if encoded.text[encoded.starts[end - 1] : encoded.ends[end - 1]].strip():
            return None
        end -= 1
    return None


def _pieces(encoded: _Encoded, count: int) -> list[str]:
    """The text of each token, without overlap: of a character that several tokens spell, the first one gets it."""
    pieces = []
    position = 0
    for index in range(count):
        end = max(encoded.ends[index], position)
        pieces.append(encoded.text[position:end])
        position = end
    return pieces
