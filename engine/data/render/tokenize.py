"""The one renderer: a row becomes text, `input_ids` and `labels`, for the preview, the checks, the trainer and the chat."""

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

from loratory.engine.config.run import TrainOn
from loratory.engine.data.conversation import Conversation, Example, ImageRef, Message, PromptRow, RowWarning
from loratory.engine.data.records import RowProblemError
from loratory.engine.data.render.images import cut_between_images, image_characters, image_spans, image_text_of
from loratory.engine.data.render.sequence_plan import (
    PlannedRow,
    RenderedTurn,
    SequencePlan,
    plan_conversation,
    plan_prompt,
    plan_text,
)
from loratory.engine.data.render.template import (
    ChatTokenizer,
    control_token_ids,
    ids_of,
    next_row_confined,
    rendering_confined,
)

IGNORED_LABEL = -100  # what PyTorch's cross entropy leaves out


@dataclass(frozen=True)
class RenderOptions:
    """The settings that decide what is trained from a row."""

    max_length: int | None  # where sequences are cut, in tokens; None cuts none
    train_on: TrainOn = "assistant"


class PromptFacts(NamedTuple):
    """What scorers get of a row whose prompt is answered."""

    text: str  # as people read it
    columns: Mapping[str, Any]  # of the row; `answer` is the answer in the data, unless a column has that name
    turns: tuple[Message, ...] = ()  # what `text` joins


@dataclass(frozen=True)
class TokenizedRow:
    """One training sequence. `labels[i]` is `input_ids[i]` where the token is trained, else -100."""

    row: int  # of the dataset, from 0
    part: int  # from 0: a row whose turns cannot share one text has several sequences
    input_ids: list[int]
    labels: list[int]
    rejected: "TokenizedRow | None" = field(default=None, kw_only=True)  # of a pair, whose chosen answer this is
    desirable: bool | None = field(default=None, kw_only=True)  # how the answer was rated
    prompt: "PromptFacts | None" = field(default=None, kw_only=True)  # where answers to it are sampled and scored
    # Log-probabilities of both answers of a pair by the reference, where they are precomputed.
    reference: tuple[float, float] | None = field(default=None, kw_only=True)
    images: tuple[ImageRef, ...] = field(default=(), kw_only=True)  # in order, each whole within `input_ids`

    @property
    def trained_tokens(self) -> int:
        return len(self.labels) - self.labels.count(IGNORED_LABEL)

    @property
    def sequences(self) -> tuple["TokenizedRow", ...]:
        """What passes through the model for it: itself, and the rejected answer of a pair."""
        return (self,) if self.rejected is None else (self, self.rejected)

    @property
    def length(self) -> int:
        """Tokens of its sequences."""
        return sum(len(sequence.input_ids) for sequence in self.sequences)


@dataclass
class Encoded:
    """A text, its tokens, and the range of characters of each token."""

    text: str
    ids: list[int]
    spans: list[tuple[int, int]]

    def append(self, text: str, tokenizer: ChatTokenizer) -> None:
        """Append the tokens of `text`, tokenized as a continuation, not as the start of a text."""
        lead, shift, more = len(ids_of("\n", tokenizer)), len(self.text) - 1, encode(f"\n{text}", tokenizer)
        if len(more.ids) <= lead or more.spans[lead][0] != 1:  # the line feed was merged with the text
            lead, shift, more = 0, len(self.text), encode(text, tokenizer)
        self.text += text
        self.ids += more.ids[lead:]
        self.spans += [(start + shift, end + shift) for start, end in more.spans[lead:]]

    def boundary(self, character: int, tokenizer: ChatTokenizer) -> int | None:
        """Return the token that starts at `character`; None if tokens before it do not end there."""
        first = bisect_left(self.spans, (character, -1))
        across = first > 0 and self.spans[first - 1][1] > character
        if across or (first < len(self.spans) and self.spans[first][0] != character):
            return None
        # Control tokens split a text before any merge, so comparing from the last one on is enough.
        controls = control_token_ids(tokenizer)
        back = next((token for token in range(first - 1, -1, -1) if self.ids[token] in controls), 0)
        begin = self.spans[back][0] if first else 0
        return first if ids_of(self.text[begin:character], tokenizer) == self.ids[back:first] else None

    def turn_end(self, first: int, after: int, tokenizer: ChatTokenizer) -> int | None:
        """Return the index after the control token that ends a turn, and before the white space that a template adds."""
        for end in range(after, first, -1):
            if self.ids[end - 1] in control_token_ids(tokenizer):
                return end
            if self.text[slice(*self.spans[end - 1])].strip():
                break
        return None


@dataclass(frozen=True)
class RenderedRow(TokenizedRow):
    """A training sequence with details for previews; truncated at `max_length` as in training."""

    encoded: Encoded  # before the cut
    tokenizer: ChatTokenizer
    lost_trained_tokens: int = 0  # trained tokens beyond the cut
    beyond_tokens: int = 0  # length with those turns of the conversation that left no sequence, if it is greater
    image_spans: tuple[tuple[int, int], ...] = ()  # the range of tokens of each of `images`

    @property
    def text(self) -> str:
        """The text, including what is truncated, up to the last rendered turn."""
        return self.encoded.text

    @property
    def uncut_tokens(self) -> int:
        """Length before the cut, of the whole conversation."""
        return max(len(self.encoded.ids), self.beyond_tokens)

    @property
    def image_pixels(self) -> list[int]:
        """Pixels of each of `images` as the model sees it."""
        image_text = image_text_of(self.tokenizer) if self.images else None
        return image_text.pixels(self.images) if image_text is not None else []

    @cached_property
    def tokens(self) -> list[str]:
        """The tokens as the vocabulary spells them."""
        return self.tokenizer.convert_ids_to_tokens(self.input_ids)

    @cached_property
    def pieces(self) -> list[str]:
        """The text of each token; joined, the text up to the cut. A character of several tokens belongs to the first."""
        pieces, position = [], 0
        for start, end in self.encoded.spans:
            pieces.append(self.encoded.text[min(position, start) : end] if end > position else "")
            position = max(position, end)
        return pieces[: len(self.input_ids)]

    @cached_property
    def special(self) -> list[bool]:
        """Which tokens are control tokens."""
        controls = control_token_ids(self.tokenizer)
        return [token in controls for token in self.input_ids]


@dataclass(frozen=True)
class Rendering:
    """All sequences of one row; of a pair the chosen answer and then the rejected one."""

    rows: tuple[RenderedRow, ...]
    notes: tuple[str, ...] = ()  # about the template: the same for many rows
    notices: tuple[RowWarning, ...] = ()  # about this row


def render_many(
    examples: Sequence[tuple[int, Example]], tokenizer: ChatTokenizer, options: RenderOptions
) -> list[Rendering | RowProblemError]:
    """Render rows, each with its number, in order; quicker than one by one, because they are tokenized together.

    A row becomes one sequence, or several where the template rewrites earlier turns. It is a problem where the template
    refuses it, where nothing in it can be trained, or where the cut leaves nothing. A pair becomes two.
    """
    sides = [
        (row, side, example.trained_part(options.train_on)) for row, example in examples for side in example.sides()
    ]
    plans: list[PlannedRow | RowProblemError] = []
    sizes = [len(side.text()) + image_characters(side, tokenizer) for _, side, _ in sides]
    with rendering_confined(sum(sizes)):
        for (_, side, train_on), size in zip(sides, sizes, strict=True):
            next_row_confined(size)
            try:
                if isinstance(side, PromptRow):
                    plans.append(PlannedRow((plan_prompt(side, tokenizer),)))
                elif isinstance(side, Conversation):
                    plans.append(plan_conversation(side, tokenizer, train_on, options.max_length))
                else:
                    plans.append(plan_text(side.text(), tokenizer))
            except RowProblemError as problem:
                plans.append(problem)
    good = [plan for plan in plans if isinstance(plan, PlannedRow)]
    # Where a template rewrites earlier turns, a row has many sequences that hold most of it.
    with rendering_confined(sum(len(sequence.text) for plan in good for sequence in _sequences_to_encode(plan))):
        encoded = iter(_encode_plans(good, tokenizer))
        renderings = iter(
            plan
            if isinstance(plan, RowProblemError)
            else _finish(row, plan, [next(encoded) for _ in _sequences_to_encode(plan)], tokenizer, options)
            for (row, _, _), plan in zip(sides, plans, strict=True)
        )
        return [_join_sides([next(renderings) for _ in example.sides()], options) for _, example in examples]


def _join_sides(sides: Sequence[Rendering | RowProblemError], options: RenderOptions) -> Rendering | RowProblemError:
    if len(sides) == 1:
        return sides[0]
    chosen, rejected = sides
    for name, side in (("chosen", chosen), ("rejected", rejected)):
        if isinstance(side, RowProblemError):
            return RowProblemError(side.kind, f"the {name} answer: {side.problem}")
        if len(side.rows) > 1:
            return RowProblemError(
                "template", f"the template rewrites turns of the {name} answer, which must be one sequence"
            )
    assert isinstance(chosen, Rendering)
    assert isinstance(rejected, Rendering)
    first, second = chosen.rows[0], rejected.rows[0]
    if first.encoded.ids == second.encoded.ids:
        return RowProblemError("equal_answers", "the chat template renders both answers equally")
    if first.input_ids == second.input_ids:
        return RowProblemError(
            "cut_away", f"both answers are equal up to max_length ({options.max_length or 0:,} tokens)"
        )
    notes, notices = (
        tuple(dict.fromkeys((*left, *right)))
        for left, right in ((chosen.notes, rejected.notes), (chosen.notices, rejected.notices))
    )
    return Rendering((*chosen.rows, replace(rejected.rows[0], part=1)), notes, notices)


def prompt_ids(messages: Sequence[Message], tokenizer: ChatTokenizer, tools: Sequence[object] = ()) -> list[int]:
    """Return the chat's prompt: exactly the text before the answer in training, for the same conversation so far.

    Raises:
        RowProblemError: If the template refuses the conversation.
    """
    return encode(plan_prompt(Conversation(tuple(messages), tuple(tools)), tokenizer).text, tokenizer).ids


def _sequences_to_encode(plan: PlannedRow) -> tuple[SequencePlan, ...]:
    """Return the sequences of a plan, followed by the one that is only measured."""
    return plan.sequences if plan.whole is None else (*plan.sequences, plan.whole)


def _encode_plans(plans: Sequence[PlannedRow], tokenizer: ChatTokenizer) -> list[Encoded]:
    """Tokenize the sequences of all plans, in order; only plain text gets the tokenizer's own bos in front."""
    sequences = [sequence for plan in plans for sequence in _sequences_to_encode(plan)]
    encodings: dict[bool, Iterator[Encoded]] = {}
    for is_plain in {sequence.plain for sequence in sequences}:
        texts = [sequence.text for sequence in sequences if sequence.plain is is_plain]
        encoding = tokenizer(texts, add_special_tokens=is_plain, return_offsets_mapping=True)
        encodings[is_plain] = map(Encoded, texts, encoding["input_ids"], encoding["offset_mapping"])
    return [next(encodings[sequence.plain]) for sequence in sequences]


def _finish(
    row: int, plan: PlannedRow, sequences: Sequence[Encoded], tokenizer: ChatTokenizer, options: RenderOptions
) -> Rendering | RowProblemError:
    pending = list(zip(plan.sequences, sequences, strict=False))
    rows: list[RenderedRow] = []
    lost_tokens, whole_length = plan.beyond_tokens, _whole_length(plan, sequences, tokenizer)
    image_tokens = 0  # of the sequence with the most
    for sequence, first_encoded in pending:
        encoded, trained, apart = _mark_trained(sequence, first_encoded, tokenizer)
        for turn in apart:
            alone = SequencePlan.of_turns([turn])
            pending.append((alone, encode(alone.text, tokenizer)))
        limit = len(encoded.ids) if options.max_length is None else options.max_length
        spans = image_spans(sequence.images, encoded.text, encoded.spans, tokenizer)
        for first, after in spans:
            trained[first:after] = [False] * (after - first)
        image_tokens = max(image_tokens, sum(after - first for first, after in spans))
        cut, images = cut_between_images(sequence.images, spans, limit, tokenizer)
        if len(images) < len(sequence.images) and not sequence.trained:  # what comes before an image is not a row
            cut, images = 0, ()
        ids, is_trained = encoded.ids[:cut], trained[:cut]
        lost_here = sum(trained[cut:])
        lost_tokens += lost_here
        if sequence.is_prompt and len(encoded.ids) > cut:
            reason = f"the prompt is longer than max_length ({len(encoded.ids):,} and {limit:,} tokens)"
            return RowProblemError("cut_away", reason)
        if any(is_trained) or sequence.is_prompt:
            labels = [token if counts else IGNORED_LABEL for token, counts in zip(ids, is_trained, strict=True)]
            sequence_row = RenderedRow(row, len(rows), ids, labels, encoded, tokenizer, lost_here, images=images)
            rows.append(replace(sequence_row, image_spans=tuple(spans[: len(images)])))
        else:
            whole_length = max(whole_length, len(encoded.ids))
    if not rows and not lost_tokens:
        return RowProblemError("nothing_to_learn", "no token of it would be trained")
    if not rows:
        reason = f"all trained tokens are truncated by max_length ({options.max_length:,} tokens)"
        if image_tokens:
            reason += f"; its images take {image_tokens:,}"
        return RowProblemError("cut_away", reason)
    # The last sequence counts what was lost with turns that left no sequence, the longest one the whole length.
    others = lost_tokens - sum(sequence.lost_trained_tokens for sequence in rows)
    if others:
        rows[-1] = replace(rows[-1], lost_trained_tokens=rows[-1].lost_trained_tokens + others)
    longest = max(range(len(rows)), key=lambda index: rows[index].uncut_tokens)
    if whole_length > rows[longest].uncut_tokens:
        rows[longest] = replace(rows[longest], beyond_tokens=whole_length)
    return Rendering(tuple(rows), plan.notes, plan.notices)


def _whole_length(plan: PlannedRow, sequences: Sequence[Encoded], tokenizer: ChatTokenizer) -> int:
    """Return the tokens of the whole conversation, where turns far beyond max_length were not rendered."""
    if plan.whole is not None:
        return len(_mark_trained(plan.whole, sequences[-1], tokenizer)[0].ids)
    return max(len(encoded.ids) for encoded in sequences) + plan.beyond_tokens if plan.beyond_tokens else 0


def _mark_trained(
    sequence: SequencePlan, encoded: Encoded, tokenizer: ChatTokenizer
) -> tuple[Encoded, list[bool], list[RenderedTurn]]:
    """Decide which tokens of a sequence are trained.

    Returns:
        The tokens; which of them are trained; and turns whose prompt alone gives other tokens than those
        in this sequence, so they need a sequence of their own.
    """
    if sequence.plain and encoded.ids[-2:] == [tokenizer.eos_token_id] * 2:
        del encoded.ids[-1], encoded.spans[-1]  # some tokenizers add a second eos
    if sequence.is_prompt:
        return encoded, [False] * len(encoded.ids), []
    if not sequence.trained:  # every token is trained except the first, which has no context
        return encoded, [index > 0 for index in range(len(encoded.ids))], []
    *earlier, last = sequence.trained
    encoded, start, end = _last_answer(encoded, last.prompt, last.answer, tokenizer)
    spans = [(turn, _earlier_answer(encoded, len(turn.prompt), len(turn.answer), tokenizer)) for turn in earlier]
    trained = [False] * len(encoded.ids)
    for first, after in ((start, end), *(span for _, span in spans if span is not None)):
        trained[first:after] = [True] * (after - first)
    return encoded, trained, [turn for turn, span in spans if span is None]


def encode(text: str, tokenizer: ChatTokenizer) -> Encoded:
    """Tokenize a text."""
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return Encoded(text, list(encoding["input_ids"]), list(encoding["offset_mapping"]))


def _last_answer(encoded: Encoded, prompt: str, answer: str, tokenizer: ChatTokenizer) -> tuple[Encoded, int, int]:
    """Return the tokens of a prompt and its final answer, and the token range of the answer."""
    start = encoded.boundary(len(prompt), tokenizer)
    if start is None:  # a token spans the boundary; the chat sends the prompt alone
        encoded = encode(prompt, tokenizer)
        start = len(encoded.ids)
        encoded.append(answer, tokenizer)
    end = encoded.turn_end(start, len(encoded.ids), tokenizer)
    if end is None:  # this template ends a turn without a token of its own
        encoded.append(tokenizer.eos_token or "", tokenizer)
        end = len(encoded.ids)
    return encoded, start, end


def _earlier_answer(encoded: Encoded, start: int, length: int, tokenizer: ChatTokenizer) -> tuple[int, int] | None:
    """Return the token range of an answer within the text; None if its prompt alone is tokenized differently."""
    first = encoded.boundary(start, tokenizer)
    if first is None:
        return None
    after = bisect_left(encoded.spans, (start + length, -1))
    return first, encoded.turn_end(first, after, tokenizer) or after
