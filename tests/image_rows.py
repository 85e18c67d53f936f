"""Rows with images, as ours and as TRL's vision collator makes them."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from loratory.engine.config.run import TrainOn
from loratory.engine.data.conversation import IMAGE_MARK, Conversation, ImageRef, Message
from loratory.engine.data.records import RowProblemError
from loratory.engine.data.render.tokenize import IGNORED_LABEL, RenderedRow, Rendering, RenderOptions, render_many
from tests.tiny_vision import VisionMember

_WORDS = "what is in the picture two cats 17 blue ☂ and a line\nof text, how many? Größe 日本 there are none".split(" ")
# Turns of a row: roles, and the order of text (t) and images (i) in each.
SHAPES = (
    "u:it a:t",
    "u:t a:t",
    "u:iit a:t",
    "u:tit a:t",
    "u:it a:t u:t a:t",
    "u:it a:t u:tii a:t",
    "s:t u:it a:t",
    "u:iiit a:t",
    "u:ti a:t",
    "u:t a:t u:t a:t",
    "u:i a:t",
    "u:titi a:t u:it a:t u:t a:t",
)
_ROLES = {"u": "user", "a": "assistant", "s": "system"}


@dataclass(frozen=True)
class ImageRow:
    """A row in our form, and its images."""

    conversation: Conversation
    images: tuple[Image.Image, ...]

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The turns as TRL reads them."""
        turns = []
        for message in self.conversation.messages:
            parts: list[dict[str, str]] = []
            for index, text in enumerate(message.content.split(IMAGE_MARK)):
                parts += [{"type": "image"}] if index else []
                parts += [{"type": "text", "text": text}] if text else []
            turns.append({"role": message.role, "content": parts})
        return turns

    def example(self, form: str) -> dict[str, Any]:
        """Return the row as TRL's collator takes it: "prompt_completion" or "conversation"."""
        turns, images = self.messages, list(self.images)
        if form == "conversation":
            return {"messages": turns, "images": images}
        return {"prompt": turns[:-1], "completion": turns[-1:], "images": images}


def image_rows(count: int, seed: int = 0, largest: int = 700) -> list[ImageRow]:
    """Return rows of all shapes, with images from 8 to `largest` pixels, wide and tall."""
    draw = random.Random(seed)
    return [_row(SHAPES[number % len(SHAPES)], draw, largest) for number in range(count)]


def _row(shape: str, draw: random.Random, largest: int) -> ImageRow:
    images: list[Image.Image] = []
    messages: list[Message] = []
    for turn in shape.split():
        role, parts = turn.split(":")
        content, refs = "", []
        for part in parts:
            if part == "i":
                images.append(random_image(draw, largest))
                refs.append(ImageRef(f"{len(images):064x}", *images[-1].size))
                content += IMAGE_MARK
            else:
                content += " ".join(draw.choices(_WORDS, k=draw.randint(1, 12)))
        messages.append(Message(_ROLES[role], content, images=tuple(refs)))
    return ImageRow(Conversation(tuple(messages), completion_start=len(messages) - 1), tuple(images))


def random_image(draw: random.Random, largest: int) -> Image.Image:
    """Return an image of a random size, made of smooth noise."""
    width, height = (int(8 * (largest / 8) ** draw.random()) for _ in range(2))
    noise = np.random.default_rng(draw.randint(0, 1 << 30)).integers(0, 256, (6, 6, 3), np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BILINEAR)


def render(
    row: ImageRow, tokenizer: Any, train_on: TrainOn, max_length: int | None = None
) -> Rendering | RowProblemError:
    """Return what we make of a row."""
    return render_many([(0, row.conversation)], tokenizer, RenderOptions(max_length, train_on))[0]


def rows_of(row: ImageRow, tokenizer: Any, max_length: int | None = None) -> tuple[RenderedRow, ...]:
    """Return the sequences of a row whose last answer is trained."""
    rendering = render(row, tokenizer, "completion", max_length)
    assert isinstance(rendering, Rendering), rendering
    return rendering.rows


def trl_batch(
    rows: Sequence[ImageRow],
    processor: Any,
    member: VisionMember,
    form: str,
    *,
    train_on: TrainOn = "completion",
    max_length: int | None = None,
) -> dict[str, torch.Tensor]:
    """Return what TRL's vision collator makes of rows."""
    from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

    collator = DataCollatorForVisionLanguageModeling(
        processor,
        max_length=max_length,
        completion_only_loss=form == "prompt_completion",
        assistant_only_loss=train_on == "assistant",
        chat_template=member.oracle if train_on == "assistant" else None,
    )
    return dict(collator([row.example(form) for row in rows]))


FORMS: tuple[tuple[str, TrainOn], ...] = (
    ("prompt_completion", "completion"),
    ("conversation", "assistant"),
    ("conversation", "all"),
)


@dataclass
class Comparison:
    """What equals and what differs, in tokens and rows."""

    rows: int = 0
    sequences_apart: int = 0  # rows whose earlier answers have sequences of their own
    white_space: int = 0  # tokens after the end of a turn that TRL trains
    image_labels: int = 0  # tokens of images that TRL trains
    tensors: int = 0


def compare(
    rows: Sequence[ImageRow], tokenizer: Any, processor: Any, member: VisionMember, form: str, train_on: TrainOn
) -> Comparison:
    """Compare a batch of rows; AssertionError where ids, labels or tensors differ in another way than known."""
    expected = trl_batch(rows, processor, member, form, train_on=train_on)
    comparison = Comparison(rows=len(rows))
    for number, row in enumerate(rows):
        rendering = render(row, tokenizer, train_on)
        assert isinstance(rendering, Rendering), rendering
        *apart, last = rendering.rows
        comparison.sequences_apart += bool(apart)
        _compare_row(last, expected, number, bool(apart), tokenizer, comparison)
        assert len(last.images) == len(row.images)
        for image, (first, after) in zip(last.images, last.image_spans, strict=True):
            count = last.input_ids[first:after].count(tokenizer.image_text.image_token_id)
            text = tokenizer.image_text.expansion(image.width, image.height, len(row.images))
            assert count == text.count(member.image_token) > 0
    ours = tokenizer.image_text.tensors([row.images for row in rows])
    ours |= tokenizer.image_text.token_tensors(expected["input_ids"].tolist())
    names = expected.keys() - {"input_ids", "attention_mask", "labels"}
    assert names == ours.keys(), (names, ours.keys())
    for name in names:
        assert ours[name].dtype == expected[name].dtype, name
        assert torch.equal(ours[name], expected[name]), name
        comparison.tensors += 1
    return comparison


def _compare_row(
    row: RenderedRow,
    expected: dict[str, torch.Tensor],
    number: int,
    is_part: bool,
    tokenizer: Any,
    comparison: Comparison,
) -> None:
    mask = expected["attention_mask"][number].bool()
    ids, labels = (expected[name][number][mask].tolist() for name in ("input_ids", "labels"))
    # A turn's end is ours where the template adds white space, so the last sequence may end before it.
    assert row.input_ids == ids, (tokenizer.decode(row.input_ids), tokenizer.decode(ids))
    of_images = {index for first, after in row.image_spans for index in range(first, after)}
    for index, (ours, theirs) in enumerate(zip(row.labels, labels, strict=True)):
        if ours == theirs:
            continue
        if index in of_images:
            assert ours == IGNORED_LABEL
            comparison.image_labels += 1
        elif tokenizer.decode([ids[index]]).isspace() or index == 0:  # the first token has no context
            assert ours == IGNORED_LABEL
            comparison.white_space += 1
        else:
            assert is_part, (index, tokenizer.decode([ids[index]]), ours, theirs)


def batches(rows: Sequence[ImageRow], size: int = 3) -> Iterator[Sequence[ImageRow]]:
    """Yield rows in batches, in which rows with and without images are together."""
    for start in range(0, len(rows), size):
        yield rows[start : start + size]
