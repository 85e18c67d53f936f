"""Images in rows: the columns that hold them, and the places in turns where they are."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import count
from pathlib import PurePath
from typing import Any, TypeVar

from loratory.engine.data.conversation import IMAGE_MARK, Conversation, ImageRef, Message, PreferencePair
from loratory.engine.data.media.row_images import require_few
from loratory.engine.data.records import RowProblemError

IMAGE_NAMES = ("images", "image", "img", "picture", "image_path", "image_paths", "file_name", "file_names")
IMAGE_ENDINGS = frozenset(".jpg .jpeg .jpe .jfif .png .webp .gif .bmp .tif .tiff .avif .heic .svg".split())
_TAG = "<image>"  # in texts, for an image of the row's column
_PART_TYPES = ("image", "image_url", "input_image")
_EMBEDDED_OR_ADDRESS = re.compile(r"data:image/|https?://", re.IGNORECASE)
# Where a turn has an image of the row's column: its place there is the width, -1 for the next one.
_NEXT = ImageRef("", -1, 0)

Load = Callable[[Any], ImageRef]  # raises RowProblemError
AnyConversation = TypeVar("AnyConversation", bound=Conversation)


def is_image(value: Any) -> bool:
    """Return whether a cell looks like an image, or a list with one."""
    if isinstance(value, Mapping):
        return isinstance(value.get("bytes"), bytes) or is_image(value.get("path"))
    if isinstance(value, str):
        if value.lstrip().startswith("["):
            return (parsed := images_of(value)) != [value] and is_image(parsed)
        name = value.partition("?")[0]
        return bool(_EMBEDDED_OR_ADDRESS.match(value)) or PurePath(name[-20:].lower()).suffix in IMAGE_ENDINGS
    if isinstance(value, list | tuple):
        return any(map(is_image, value))
    return isinstance(value, bytes)


def image_column(names: Mapping[str, str], rows: Sequence[Mapping[str, Any]]) -> str | None:
    """Return the column that has the images of rows, by one of its usual names or the only one with bytes; else None."""
    columns = (names[name] for name in IMAGE_NAMES if name in names)
    with_images = [column for column in columns if any(is_image(row.get(column)) for row in rows)]
    with_bytes = [name for name in {*names.values()} if any(holds_bytes(row.get(name)) for row in rows)]
    return with_images[0] if with_images else with_bytes[0] if len(with_bytes) == 1 else None


def holds_bytes(value: Any) -> bool:
    """Return whether a cell is the bytes of an image, or a list of such: rows have no others."""
    value = value[0] if isinstance(value, list) and value else value
    return isinstance(value.get("bytes") if isinstance(value, Mapping) else value, bytes)


def images_of(cell: Any) -> list[Any]:
    """Return the images in a cell: one or a list, also as JSON text; none of an empty cell."""
    if isinstance(cell, str) and cell.lstrip().startswith("["):  # a cell of a table
        try:
            cell = json.loads(cell)
        except (ValueError, RecursionError):
            return [cell]
    if not cell or cell != cell:  # pandas writes NaN, which differs from itself
        return []
    return list(cell) if isinstance(cell, list | tuple) else [cell]


def is_image_part(part: Any) -> bool:
    """Return whether a part of a turn is an image."""
    return isinstance(part, Mapping) and part.get("type") in _PART_TYPES


def image_of_part(part: Mapping[str, Any], load: Load | None) -> ImageRef:
    """Return the image of such a part, or the place of one in the row's column."""
    source = {name: value for name, value in part.items() if name not in ("type", "text", "index", "detail") and value}
    if source:
        if load is None:
            raise RowProblemError("image", "images are not read here")
        return load(source)
    index = part.get("index")
    return ImageRef("", index, 0) if isinstance(index, int) and index >= 0 else _NEXT


def place_images(
    example: AnyConversation, cells: Sequence[Any], load: Load | None, column: str | None
) -> AnyConversation:
    """Return a row with an image for each of its marks; `cells` are those of its column, where it has one.

    `<image>` in a text is the place of one, unless turns have parts that are images. Without any place, images come first in
    the first turn of the user. Marks that the text itself has are dropped.

    Raises:
        RowProblemError: If places and images are not equally many, or an image cannot be read.
    """
    rejected = example.rejected if isinstance(example, PreferencePair) else ()
    turns = [*example.messages, *rejected]
    has_parts = any(turn.images for turn in turns)
    has_tags = column is not None and not has_parts
    turns = [turn if turn.images else _with_marks(turn, has_tags=has_tags) for turn in turns]
    require_few(len(cells))
    if cells and not any(turn.images for turn in turns):
        first = next((index for index, turn in enumerate(turns) if turn.role == "user"), None)
        if first is None:
            raise RowProblemError("image", "no turn is the user's, in which its images could be")
        content = IMAGE_MARK * len(cells) + turns[first].content
        turns[first] = replace(turns[first], content=content, images=(_NEXT,) * len(cells))
    numbers = count()
    places = [
        [ref if ref.digest else ref.width if ref.width >= 0 else next(numbers) for ref in turn.images] for turn in turns
    ]
    used = [place for row in places for place in row if isinstance(place, int)]
    if set(used) != set(range(len(cells))):
        has = f"{column} has {len(cells):,}" if column is not None else "no column has images"
        places_are = "is 1 place" if len(used) == 1 else f"are {len(used):,} places"
        raise RowProblemError("image", f"there {places_are} for images in its turns, and {has}")
    refs = [load(cell) for cell in cells] if load is not None else []
    turns = [
        replace(turn, images=tuple(refs[place] if isinstance(place, int) else place for place in row)) if row else turn
        for turn, row in zip(turns, places, strict=True)
    ]
    for number, turn in enumerate(turns, start=1):
        is_tagged = has_tags and _TAG in (turn.reasoning or "")
        if is_tagged or turn.content.count(IMAGE_MARK) != len(turn.images):
            raise RowProblemError("image", f"an image of turn {number} is in its reasoning, where none can be")
    split = len(example.messages)
    example = replace(example, messages=tuple(turns[:split]))
    return replace(example, rejected=tuple(turns[split:])) if isinstance(example, PreferencePair) else example


def _with_marks(turn: Message, *, has_tags: bool) -> Message:
    content = turn.content.replace(IMAGE_MARK, "")
    content = content.replace(_TAG, IMAGE_MARK) if has_tags else content
    return replace(turn, content=content, images=(_NEXT,) * content.count(IMAGE_MARK))
