"""Images in the text of a row: what they are there, which tokens are theirs, and a cut that spares them."""

import contextlib
import json
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from operator import itemgetter
from typing import Any, Protocol

from loratory.engine.data.conversation import Example, ImageRef, Message
from loratory.engine.data.records import RowProblemError
from loratory.engine.models.families.base import SmallerImage, Tiles


class ImageText(Protocol):
    """What images are in text: the attribute `image_text` of a tokenizer whose model takes images."""

    placeholder: str  # what the chat template writes for an image
    image_token_id: int

    @property
    def reserved(self) -> tuple[str, ...]:
        """Texts that mean an image, and must not be in a row's own text."""

    @property
    def settings(self) -> str:
        """Everything that decides what an image becomes."""

    def expansions(self, images: Sequence[ImageRef]) -> list[str]:
        """Return the text of each image of a row."""

    def pixels(self, images: Sequence[ImageRef]) -> list[int]:
        """Return the pixels of each image of a row as the model sees it."""

    def expand(self, text: str, images: Sequence[ImageRef]) -> str:
        """Replace the placeholders of a text by the images of a row."""

    def tiles(self, width: int, height: int, count: int = 1) -> Tiles:
        """Return how an image is cut, which is one of `count` in its row."""

    def smaller(self, width: int, height: int, count: int = 1) -> SmallerImage | None:
        """Return what an image becomes with a smaller budget; None where that saves nothing."""

    def spans(self, text: str, images: Sequence[ImageRef]) -> list[tuple[int, int]]:
        """Return where the images are in a text that `expand` returned, as ranges of characters."""


def image_text_of(tokenizer: object) -> ImageText | None:
    """Return what images are in text; None where the model takes none."""
    image_text: ImageText | None = getattr(tokenizer, "image_text", None)
    return image_text


def images_of(messages: Sequence[Message]) -> tuple[ImageRef, ...]:
    """Return the images of turns, in order."""
    return tuple(image for message in messages for image in message.images)


def image_characters(example: Example, tokenizer: object) -> int:
    """Return how many characters the images of an example become."""
    image_text, images = image_text_of(tokenizer), images_of(getattr(example, "messages", ()))
    if image_text is not None and images:
        with contextlib.suppress(RowProblemError):  # raised again where the row is planned
            return sum(map(len, image_text.expansions(images)))
    return 0


def require_supported_images(messages: Sequence[Message], tools: Sequence[Any], tokenizer: object) -> None:
    """Require that the model takes images where turns have some, and that no text of theirs means an image.

    Raises:
        RowProblemError: If not.
    """
    if any(message.images for message in messages) and image_text_of(tokenizer) is None:
        raise RowProblemError("image", "it has images, and this model takes none; choose a vision-language model")
    for message in messages:
        calls = (f"{call.name} {json.dumps(call.arguments)}" for call in message.tool_calls)
        for text in (message.content, message.reasoning or "", *calls):
            refuse_reserved(text, tokenizer)
    refuse_reserved(json.dumps(tools), tokenizer)


def refuse_reserved(text: str, tokenizer: object) -> None:
    """Refuse a row's own text that means an image to the model.

    Raises:
        RowProblemError: If it does.
    """
    image_text = image_text_of(tokenizer)
    reserved = next((token for token in image_text.reserved if token in text), None) if image_text else None
    if reserved is not None:
        raise RowProblemError("special_token", f"its text holds {reserved}, which means an image to the model")


def image_spans(
    images: Sequence[ImageRef], text: str, token_spans: Sequence[tuple[int, int]], tokenizer: object
) -> list[tuple[int, int]]:
    """Return the range of tokens of each image; white space next to it may share a token with it.

    `token_spans` are the ranges of characters of the text's tokens.
    """
    image_text = image_text_of(tokenizer)
    if image_text is None or not images:
        return []
    return [
        (bisect_right(token_spans, start, key=itemgetter(1)), bisect_left(token_spans, end, key=itemgetter(0)))
        for start, end in image_text.spans(text, images)
    ]


def cut_between_images(
    images: tuple[ImageRef, ...], spans: Sequence[tuple[int, int]], limit: int, tokenizer: object
) -> tuple[int, tuple[ImageRef, ...]]:
    """Return where a sequence is cut, which is never within an image, and the images before that."""
    cut = min([limit, *(first for first, after in spans if first < limit < after)])
    whole = images[: sum(after <= cut for _, after in spans)]
    image_text = image_text_of(tokenizer)
    if image_text is None or len(whole) == len(images):
        return cut, whole
    # Where what an image becomes depends on how many there are, fewer of them would be another text.
    is_same = image_text.expansions(whole) == image_text.expansions(images)[: len(whole)]
    return (cut, whole) if is_same else (min(cut, spans[0][0]), ())
