"""The one renderer: a row becomes text, `input_ids` and `labels`, for the preview, the checks, the trainer and the chat."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

from engine.config.run import TrainOn
from engine.data.conversation import Conversation, Example, Message, PlainText, RowWarning
from engine.data.records import RowProblemError
from engine.data.render.sequence_plan import RowPlan, SequencePlan, plan_conversation, plan_text, prompt_text
from engine.data.render.template import (
    ChatTokenizer,
    control_token_ids,
    ids_of,
    next_row_confined,
    rendering_confined,
    settings_of,
)
from engine.data.render.turn_renderer import Turn

IGNORED_LABEL = -100  # what PyTorch's cross entropy leaves out


@dataclass
class Encoded:
    """A tokenized text: token i reaches from character `starts[i]` up to, not with, `ends[i]`."""

    text: str
    ids: list[int]
    starts: list[int]
    ends: list[int]

    def append(self, text: str, tokenizer: ChatTokenizer) -> None:
        """Add the tokens of `text`, tokenized as what follows other text and not as a beginning of its own."""
        marker = "\n"
        lead = len(ids_of(marker, tokenizer))
        following = encode(marker + text, tokenizer)
        shift = len(self.text) - len(marker)
        if following.starts[lead : lead + 1] != [len(marker)]:  # the marker melted into the text
            lead, shift, following = 0, len(self.text), encode(text, tokenizer)
        self.text += text
        self.ids.extend(following.ids[lead:])
        self.starts.extend(start + shift for start in following.starts[lead:])
        self.ends.extend(end + shift for end in following.ends[lead:])

    def boundary(self, character: int, tokenizer: ChatTokenizer) -> int | None:
        """Return the token that begins at `character`, if those before it are the tokens of the text before it.

        None where a token reaches across, or where that text by itself would be split into other tokens.
        """
        first = bisect_left(self.starts, character)
        if first < len(self.starts) and self.starts[first] != character:
            return None
        if first and self.ends[first - 1] > character:
            return None
        # Control tokens split a text before anything else is merged, so it is enough to compare from the last one on.
        controls = control_token_ids(tokenizer)
        back = next((token for token in range(first - 1, -1, -1) if self.ids[token] in controls), 0)
        begin = self.starts[back] if first else 0
        alone = _ids_alone(self.text[begin:character], tokenizer)
        return first if alone == self.ids[back:first] else None

    def turn_end(self, first: int, after: int, tokenizer: ChatTokenizer) -> int | None:
        """Return index after the control token that ends a turn whose tokens are `first` to `after`.

        White space that a template puts after it is not part of the turn. None if no control token ends it.
        """
        controls = control_token_ids(tokenizer)
        for end in range(after, first, -1):
            if self.ids[end - 1] in controls:
                return end
            if self.text[self.starts[end - 1] : self.ends[end - 1]].strip():
                return None
        return None

    def pieces(self) -> list[str]:
        """Return the text of each token; a character of several tokens belongs to the first of them."""
        pieces = []
        position = 0
        for start, end in zip(self.starts, self.ends, strict=True):
            pieces.append(self.text[min(position, start) : end] if end > position else "")
            position = max(position, end)
        return pieces


def encode(text: str, tokenizer: ChatTokenizer) -> Encoded:
    """Tokenize one text."""
    return encode_many([text], tokenizer)[0]


def encode_many(texts: Sequence[str], tokenizer: ChatTokenizer, *, add_special_tokens: bool = False) -> list[Encoded]:
    """Tokenize several texts at once, on all cores where the tokenizer can."""
    if not texts:
        return []
    encoding = tokenizer(list(texts), add_special_tokens=add_special_tokens, return_offsets_mapping=True)
    return [
        Encoded(text, list(ids), [start for start, _ in offsets], [end for _, end in offsets])
        for text, ids, offsets in zip(texts, encoding["input_ids"], encoding["offset_mapping"], strict=True)
    ]


def _ids_alone(text: str, tokenizer: ChatTokenizer) -> list[int]:
    # What a template writes before an answer is short and repeats; whole prompts do not come twice.
    return ids_of(text, tokenizer) if len(text) > 256 else _remembered_ids(tokenizer, settings_of(tokenizer), text)


@lru_cache(maxsize=4096)
def _remembered_ids(tokenizer: ChatTokenizer, _settings: tuple[Any, ...], text: str) -> list[int]:
    return ids_of(text, tokenizer)


@dataclass(frozen=True)
class RenderOptions:
    """The settings that decide what is trained from a row."""

    max_length: int | None  # where sequences are cut, in tokens; None cuts none
    train_on: TrainOn = "assistant"


@dataclass(frozen=True)
class TokenizedRow:
    """One training sequence. `labels[i]` is `input_ids[i]` where the token is trained, else -100."""

    row: int  # of the dataset, from 0
    part: int  # from 0: a row whose turns cannot share one text has several sequences
    input_ids: list[int]
    labels: list[int]

    @property
    def trained_tokens(self) -> int:
        return len(self.labels) - self.labels.count(IGNORED_LABEL)


@dataclass(frozen=True)
class RenderedRow(TokenizedRow):
    """A training sequence with everything that a person wants to see of it; cut at `max_length` as training does."""

    encoded: Encoded  # before the cut
    tokenizer: ChatTokenizer
    lost_trained_tokens: int = 0  # trained tokens beyond the cut
    beyond_tokens: int = 0  # length with those turns of the conversation that left no sequence, if it is greater

    @property
    def text(self) -> str:
        """The text, also what lies beyond the cut, up to the last turn that was looked at."""
        return self.encoded.text

    @property
    def uncut_tokens(self) -> int:
        """Length before the cut, of the whole conversation."""
        return max(len(self.encoded.ids), self.beyond_tokens)

    @cached_property
    def tokens(self) -> list[str]:
        """The tokens as the vocabulary spells them."""
        return self.tokenizer.convert_ids_to_tokens(self.input_ids)

    @cached_property
    def pieces(self) -> list[str]:
        """The text of each token; joined, the text up to the cut."""
        return self.encoded.pieces()[: len(self.input_ids)]

    @cached_property
    def special(self) -> list[bool]:
        """Which tokens are control tokens."""
        controls = control_token_ids(self.tokenizer)
        return [token in controls for token in self.input_ids]


@dataclass(frozen=True)
class Rendering:
    """All sequences of one row."""

    rows: tuple[RenderedRow, ...]
    notes: tuple[str, ...] = ()  # about the template: the same for many rows
    notices: tuple[RowWarning, ...] = ()  # about this row


def render_many(
    examples: Sequence[tuple[int, Example]], tokenizer: ChatTokenizer, options: RenderOptions
) -> list[Rendering | RowProblemError]:
    """Render rows, each with its number, in order; quicker than one by one, because they are tokenized together.

    A row becomes one sequence, or several where the template rewrites earlier turns. It is a problem where the template
    refuses it, where nothing in it can be trained, or where the cut leaves nothing.
    """
    plans: list[RowPlan | RowProblemError] = []
    sizes = [len(example.text()) for _, example in examples]
    with rendering_confined(sum(sizes)):
        for (_, example), size in zip(examples, sizes, strict=True):
            next_row_confined(size)
            try:
                if isinstance(example, PlainText):
                    plans.append(plan_text(example, tokenizer))
                else:
                    plans.append(plan_conversation(example, tokenizer, options.train_on, options.max_length))
            except RowProblemError as problem:
                plans.append(problem)
    good = [plan for plan in plans if isinstance(plan, RowPlan)]
    # Where a template rewrites earlier turns, a row has many sequences that hold most of it.
    with rendering_confined(sum(len(sequence.text) for plan in good for sequence in _measured(plan))):
        encoded = iter(_encode_plans(good, tokenizer))
        return [
            plan
            if isinstance(plan, RowProblemError)
            else _finish(row, plan, [next(encoded) for _ in _measured(plan)], tokenizer, options)
            for (row, _), plan in zip(examples, plans, strict=True)
        ]


def prompt_ids(messages: Sequence[Message], tokenizer: ChatTokenizer, tools: Sequence[object] = ()) -> list[int]:
    """Return the chat's prompt: exactly what stood before the answer in training, for the same conversation so far.

    Raises:
        RowProblemError: If the template refuses the conversation.
    """
    return encode(prompt_text(Conversation(tuple(messages), tuple(tools)), tokenizer), tokenizer).ids


def _measured(plan: RowPlan) -> tuple[SequencePlan, ...]:
    """Return the sequences of a plan, and after them the one that only its length is asked of."""
    return plan.sequences if plan.whole is None else (*plan.sequences, plan.whole)


def _encode_plans(plans: Sequence[RowPlan], tokenizer: ChatTokenizer) -> list[Encoded]:
    """Tokenize the sequences of all plans, in order; only plain text gets the tokenizer's own bos in front."""
    sequences = [sequence for plan in plans for sequence in _measured(plan)]
    conversations = iter(encode_many([s.text for s in sequences if not s.plain], tokenizer))
    plain = iter(encode_many([s.text for s in sequences if s.plain], tokenizer, add_special_tokens=True))
    return [next(plain) if sequence.plain else next(conversations) for sequence in sequences]


def _finish(
    row: int, plan: RowPlan, sequences: Sequence[Encoded], tokenizer: ChatTokenizer, options: RenderOptions
) -> Rendering | RowProblemError:
    pending = list(zip(plan.sequences, sequences, strict=False))
    rendered: list[RenderedRow] = []
    lost = plan.beyond_tokens
    beyond = _whole_length(plan, sequences, tokenizer)
    for sequence, first_encoded in pending:
        encoded, trained, apart = _mark_trained(sequence, first_encoded, tokenizer)
        for turn in apart:
            alone = SequencePlan(turn.prompt + turn.answer, (turn,))
            pending.append((alone, encode(alone.text, tokenizer)))
        cut = len(encoded.ids) if options.max_length is None else options.max_length
        ids, kept = encoded.ids[:cut], trained[:cut]
        lost_here = sum(trained[cut:])
        lost += lost_here
        if any(kept):
            labels = [token if counts else IGNORED_LABEL for token, counts in zip(ids, kept, strict=True)]
            rendered.append(RenderedRow(row, len(rendered), ids, labels, encoded, tokenizer, lost_here))
        else:
            beyond = max(beyond, len(encoded.ids))
    if rendered:
        if lost > sum(one.lost_trained_tokens for one in rendered):  # of turns that left no sequence behind
            others = lost - sum(one.lost_trained_tokens for one in rendered[:-1])
            rendered[-1] = replace(rendered[-1], lost_trained_tokens=others)
        longest = max(range(len(rendered)), key=lambda index: rendered[index].uncut_tokens)
        if beyond > rendered[longest].uncut_tokens:
            rendered[longest] = replace(rendered[longest], beyond_tokens=beyond)
        return Rendering(tuple(rendered), plan.notes, plan.notices)
    if lost:
        return RowProblemError(
            "cut_away", f"all trained tokens are truncated by max_length ({options.max_length:,} tokens)"
        )
    return RowProblemError("nothing_to_learn", "no token of it would be trained")


def _whole_length(plan: RowPlan, sequences: Sequence[Encoded], tokenizer: ChatTokenizer) -> int:
    """Return the tokens of the whole conversation, where turns far beyond max_length were not rendered."""
    if plan.whole is not None:
        return len(_mark_trained(plan.whole, sequences[-1], tokenizer)[0].ids)
    return max(len(encoded.ids) for encoded in sequences) + plan.beyond_tokens if plan.beyond_tokens else 0


def _mark_trained(
    sequence: SequencePlan, encoded: Encoded, tokenizer: ChatTokenizer
) -> tuple[Encoded, list[bool], list[Turn]]:
    """Decide which tokens of a sequence are trained.

    Returns:
        The tokens; which of them are trained; and turns whose prompt, tokenized by itself, gives other tokens than those
        in this sequence, and which need a sequence of their own.
    """
    if sequence.plain and encoded.ids[-2:] == [tokenizer.eos_token_id] * 2:
        del encoded.ids[-1], encoded.starts[-1], encoded.ends[-1]  # some tokenizers add eos by themselves
    if not sequence.trained:  # everything counts, except the first token: nothing comes before it to learn it from
        return encoded, [index > 0 for index in range(len(encoded.ids))], []
    *earlier, last = sequence.trained
    start = encoded.boundary(last.start, tokenizer)
    if start is None:
        # A token reaches across the end of the prompt. The chat sends the prompt by itself, so it is tokenized by itself.
        encoded = encode(last.prompt, tokenizer)
        start = len(encoded.ids)
        encoded.append(last.answer, tokenizer)
    end = encoded.turn_end(start, len(encoded.ids), tokenizer)
    if end is None:
        encoded.append(tokenizer.eos_token or "", tokenizer)
        end = len(encoded.ids)
    trained = [False] * len(encoded.ids)
    trained[start:end] = [True] * (end - start)
    apart: list[Turn] = []
    for turn in earlier:
        first = encoded.boundary(turn.start, tokenizer)
        if first is None:
            apart.append(turn)
            continue
        after = bisect_left(encoded.starts, turn.start + len(turn.answer))
        until = encoded.turn_end(first, after, tokenizer) or after
        trained[first:until] = [True] * (until - first)
    return encoded, trained, apart
