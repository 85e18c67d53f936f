"""What an image becomes, in text and in tensors, by the family's own processor in transformers.

The text follows from an image's size alone: the family's code resizes and cuts an array of that shape without pixels.
torchvision is not needed: image processors run on PIL, and processors are built without their part for videos.
"""

import inspect
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from copy import copy
from functools import cached_property, lru_cache
from itertools import chain, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from PIL.Image import Image
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_utils import select_best_resolution
from transformers.image_utils import SizeDict
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.gemma3.processing_gemma3 import Gemma3Processor
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.idefics3.processing_idefics3 import Idefics3Processor
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil
from transformers.models.llava_onevision.processing_llava_onevision import LlavaOnevisionProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.processing_qwen2_vl import Qwen2VLProcessor

from loratory.engine.data.conversation import ImageRef
from loratory.engine.data.records import RowProblemError
from loratory.engine.errors import ModelError
from loratory.engine.models.families.base import ImageFamily, PixelBudget, PixelSetting, SmallerImage, Tiles
from loratory.engine.models.families.registry import require_family
from loratory.engine.models.folder import read_config

if TYPE_CHECKING:
    import torch

_MAX_CHARACTERS = 8 << 20  # of the images of a row as text; a row of the longest context has a quarter of them


class _ShapesOnly(PilBackend):  # type: ignore[misc]  # transformers has no types
    """Resizes the shape of an image and none of its pixels."""

    def resize(self, image: np.ndarray, size: Any, **_: Any) -> np.ndarray:
        return np.broadcast_to(image[:, :1, :1], (len(image), size.height, size.width))


class ImageProcessor(ABC):
    """The image part of a family's processor; see `load`."""

    model_types: ClassVar[tuple[str, ...]]
    image_class: ClassVar[type[PilBackend]]
    text_class: ClassVar[type[Any]]

    def __init__(self, family: ImageFamily, images: Any, texts: Any) -> None:
        self.family = family
        self._images = images  # transformers' image processor
        self._texts = texts  # its processor, which writes what an image is in text
        self._max_pixels: int | None = None  # of an image before it is processed
        self.placeholder: str = texts.image_token
        self.image_token_id: int = texts.image_token_ids[0]
        self._image_token: str = texts.tokenizer.convert_ids_to_tokens(self.image_token_id)
        self._size_text = lru_cache(maxsize=512)(self._text_of_size)  # of 200 kB at most
        self._size_tiles = lru_cache(maxsize=4096)(self.tiles)

    @staticmethod
    def load(folder: Path, tokenizer: Any, budget: PixelBudget | None = None) -> "ImageProcessor":
        """Load the image processor of a model.

        Args:
            folder: Of the model, with config.json and preprocessor_config.json.
            tokenizer: The model's own, which has its tokens for images.
            budget: How large images may be; the model's own by default.

        Raises:
            ModelError: If the family is not supported, its files are damaged, or it does not have a setting of the budget.
        """
        name = str(tokenizer.name_or_path)
        family = require_family(read_config(folder / "config.json", name), name)
        kind = next(kind for kind in _KINDS if family.model_types[0] in kind.model_types)
        length = len(tokenizer)
        try:
            images = kind.image_class.from_pretrained(folder, local_files_only=True)
            processor = kind(family, images, _without_video(kind.text_class, folder, name, images, tokenizer))
            processor._set_budget(budget)
            processor.expansion(64, 64)
        except Exception as error:  # damaged files surface as nearly any exception
            if isinstance(error, ModelError):
                raise
            what = f"The image processor of {name} cannot be loaded ({type(error).__name__})."
            fix = "Check that the model has its preprocessor_config.json, and a tokenizer with tokens for images."
            raise ModelError(what, fix) from error
        if len(tokenizer) != length:
            what = f"The tokenizer of {name} lacks tokens for images ({family.label})."
            raise ModelError(what, "Use the tokenizer of the original model.")
        return processor

    def _set_budget(self, budget: PixelBudget | None) -> None:
        names: tuple[PixelSetting, ...] = ("min_pixels", "max_pixels", "do_image_splitting")
        values = {name: value for name in names if (value := getattr(budget, name, None)) is not None}
        for name in values:
            if name not in self.family.settings:
                has = " and ".join(self.family.settings) or "none"
                raise ModelError(f"{self.family.label} has no setting vision.{name}.", f"Leave it empty; it has {has}.")
        self._apply(values)

    def _apply(self, budget: Mapping[PixelSetting, Any]) -> None:  # noqa: B027 - a family may have no setting
        """Change the image processor for a budget, which has only settings of the family."""

    @abstractmethod
    def _inputs_of(self, width: int, height: int, count: int) -> dict[str, Any]:
        """Return what transformers' `replace_image_token` reads of an image that is one of `count` in its row."""

    @abstractmethod
    def tiles(self, width: int, height: int, count: int = 1) -> Tiles:
        """Return how an image is cut, which is one of `count` in its row."""

    @cached_property
    def reserved(self) -> tuple[str, ...]:
        """Texts that mean an image or a video, and must not be in a row's own text."""
        tokens = [self.placeholder, self._image_token, getattr(self._texts, "video_token", None)]
        return tuple(dict.fromkeys(filter(None, tokens)))

    @property
    def settings(self) -> str:
        """Everything that decides what an image becomes, as text."""
        return json.dumps([self._images.to_json_string(), self._max_pixels, self.expansion(64, 64)])

    def expansion(self, width: int, height: int, count: int = 1) -> str:
        """Return the text of an image of this size, which is one of `count` in its row.

        Raises:
            RowProblemError: If the family does not take an image of this shape.
        """
        return self._size_text(*self._size(width, height), count)

    def _text_of_size(self, width: int, height: int, count: int) -> str:
        try:
            return str(self._texts.replace_image_token(self._inputs_of(width, height, count), image_idx=0))
        except ValueError as error:
            raise RowProblemError("image", f"an image of {width:,} × {height:,} pixels is refused: {error}") from error

    def smaller(self, width: int, height: int, count: int = 1) -> SmallerImage | None:
        """Return what an image becomes with half the edge that it has now; None where that saves nothing."""
        if "max_pixels" not in self.family.settings:
            return None
        tiles = self.tiles(width, height, count)
        pixels = (max(tiles.width, tiles.height) // 2) ** 2
        other = type(self)(self.family, copy(self._images), self._texts)
        other._apply({"max_pixels": pixels})
        now, then = (
            len(self._texts.tokenizer.tokenize(each.expansion(width, height, count))) for each in (self, other)
        )
        return SmallerImage(pixels, then) if then < now else None

    def expansions(self, images: Sequence[ImageRef]) -> list[str]:
        """Return the text of each image of a row."""
        texts = [self.expansion(image.width, image.height, len(images)) for image in images]
        if sum(map(len, texts)) > _MAX_CHARACTERS:
            tokens = sum(text.count(self._image_token) for text in texts)
            raise RowProblemError("too_long", f"its {len(images):,} images take {tokens:,} tokens")
        return texts

    def pixels(self, images: Sequence[ImageRef]) -> list[int]:
        """Return the pixels of each image of a row as the tower sees it."""
        return [self._size_tiles(image.width, image.height, len(images)).pixels for image in images]

    def expand(self, text: str, images: Sequence[ImageRef]) -> str:
        """Replace the placeholders in a text by what the images of a row are in text.

        Raises:
            RowProblemError: If there are not as many placeholders as images.
        """
        pieces = text.split(self.placeholder)
        if len(pieces) != len(images) + 1:
            reason = f"the model's chat template writes {len(pieces) - 1:,} of its {len(images):,} images"
            raise RowProblemError("template", reason)
        return "".join(chain(*zip_longest(pieces, self.expansions(images), fillvalue="")))

    def spans(self, text: str, images: Sequence[ImageRef]) -> list[tuple[int, int]]:
        """Return where the images are in a text that `expand` returned, as ranges of characters."""
        spans, position = [], 0
        for expansion in self.expansions(images):
            start = text.index(expansion, position)
            position = start + len(expansion)
            spans.append((start, position))
        return spans

    def tensors(self, rows: Sequence[Sequence[Image]]) -> dict[str, "torch.Tensor"]:
        """Return the image inputs of a pass; {} where no row of it has an image.

        Args:
            rows: The images of each row of the pass, in order; a row may have none.
        """
        if not any(rows):
            return {}
        resized = [[self._shrink(image) for image in row] for row in rows]
        outputs = self._images(resized, **self._texts._merge_kwargs(return_tensors="pt")["images_kwargs"])
        return {name: outputs[name] for name in self.family.image_inputs if name in outputs}

    def token_tensors(self, input_ids: Sequence[Sequence[int]]) -> dict[str, "torch.Tensor"]:
        """Return the inputs that have a value for each token of padded rows; {} where the family has none."""
        if self.family.typing_input is None:
            return {}
        import torch

        types = self._texts.create_mm_token_type_ids([list(ids) for ids in input_ids])
        return {self.family.typing_input: torch.tensor(types)}

    def save(self, folder: Path) -> None:
        """Write the image processor with its budget, as transformers loads it."""
        self._images.save_pretrained(folder)

    def _size(self, width: int, height: int) -> tuple[int, int]:
        if self._max_pixels is None or width * height <= self._max_pixels:
            return width, height
        scale = math.sqrt(self._max_pixels / (width * height))
        return max(1, int(width * scale)), max(1, int(height * scale))

    def _shrink(self, image: Image) -> Image:
        size = self._size(*image.size)
        return image if size == image.size else image.resize(size, resample=self._images.resample)

    @cached_property
    def _shapes(self) -> Any:
        """The image processor, for arrays without pixels."""
        shapes = copy(self._images)
        shapes.__class__ = type("Shapes", (type(shapes), _ShapesOnly), {})
        return shapes


class Idefics3Images(ImageProcessor):
    """Tiles of one size, then the whole image in that size."""

    model_types = ("idefics3", "smolvlm")
    image_class = Idefics3ImageProcessorPil
    text_class = Idefics3Processor  # SmolVLM's differs for videos alone, and needs a package for them

    def _apply(self, budget: Mapping[PixelSetting, Any]) -> None:
        if "do_image_splitting" in budget:
            self._images.do_image_splitting = budget["do_image_splitting"]
        if "max_pixels" in budget:
            tile = self._images.max_image_size["longest_edge"]
            self._images.size = SizeDict(longest_edge=tile * max(1, int(math.sqrt(budget["max_pixels"]) / tile)))

    def tiles(self, width: int, height: int, count: int = 1) -> Tiles:  # noqa: ARG002
        tile = self._images.max_image_size["longest_edge"]
        if not self._images.do_image_splitting:
            return Tiles(tile, tile, 1, 1, has_overview=False)
        image = _shape(width, height)
        if self._images.do_resize:
            image = self._shapes.resize(image, self._images.size)
        image = self._shapes.resize_for_vision_encoder(image, tile)
        _, rows, columns = self._shapes.split_images(image, self._images.max_image_size)
        return Tiles(image.shape[2], image.shape[1], max(1, rows), max(1, columns), has_overview=rows > 0)

    def _inputs_of(self, width: int, height: int, count: int) -> dict[str, Any]:
        tiles = self.tiles(width, height, count)
        rows, columns = (tiles.rows, tiles.columns) if tiles.has_overview else (0, 0)
        return {"rows": [[rows]], "cols": [[columns]]}


class QwenImages(ImageProcessor):
    """The whole image, in patches of which several become one token."""

    model_types = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
    image_class = Qwen2VLImageProcessorPil
    text_class = Qwen2VLProcessor  # those of newer models differ for videos alone

    def _apply(self, budget: Mapping[PixelSetting, Any]) -> None:
        most = budget.get("max_pixels", self._images.size.longest_edge)
        least = budget.get("min_pixels", min(self._images.size.shortest_edge, most))
        self._images.size = SizeDict(shortest_edge=least, longest_edge=max(least, most))

    def tiles(self, width: int, height: int, count: int = 1) -> Tiles:  # noqa: ARG002
        factor = self._images.patch_size * self._images.merge_size
        image = _shape(width, height)
        if self._images.do_resize:
            image = self._shapes.resize(image, self._images.size, None, factor=factor)
        _, height, width = image.shape
        return Tiles(width, height, height // factor, width // factor, has_overview=False)

    def _inputs_of(self, width: int, height: int, count: int) -> dict[str, Any]:
        tiles, merge = self.tiles(width, height, count), self._images.merge_size
        return {"image_grid_thw": np.array([[1, tiles.rows * merge, tiles.columns * merge]])}


class Gemma3Images(ImageProcessor):
    """A square of one size, for every image."""

    model_types = ("gemma3",)
    image_class = Gemma3ImageProcessorPil
    text_class = Gemma3Processor

    def tiles(self, width: int, height: int, count: int = 1) -> Tiles:  # noqa: ARG002
        return Tiles(self._images.size.width, self._images.size.height, 1, 1, has_overview=False)

    def _inputs_of(self, width: int, height: int, count: int) -> dict[str, Any]:  # noqa: ARG002
        return {"num_crops": [0]}  # the processor's defaults come before the files of a model, and have none


class LlavaOnevisionImages(ImageProcessor):
    """The whole image, then tiles of it; the whole image alone where a row has several images."""

    model_types = ("llava_onevision",)
    image_class = LlavaOnevisionImageProcessorPil
    text_class = LlavaOnevisionProcessor

    def _apply(self, budget: Mapping[PixelSetting, Any]) -> None:
        self._max_pixels = budget.get("max_pixels")  # a smaller image has fewer tiles

    def tiles(self, width: int, height: int, count: int = 1) -> Tiles:
        if count > 1:
            return Tiles(self._edge, self._edge, 1, 1, has_overview=False)
        size = list(reversed(self._size(width, height)))
        best_height, best_width = select_best_resolution(size, self._images.image_grid_pinpoints)
        return Tiles(best_width, best_height, best_height // self._edge, best_width // self._edge, has_overview=True)

    def _inputs_of(self, width: int, height: int, count: int) -> dict[str, Any]:
        pixels = [[_shape(self._edge, self._edge)]]
        return {"batch_num_images": [count], "image_sizes": [[height, width]], "pixel_values": pixels}

    @property
    def _edge(self) -> int:
        return int(self._images.size.height or self._images.size.shortest_edge)


_KINDS: tuple[type[ImageProcessor], ...] = (Idefics3Images, QwenImages, Gemma3Images, LlavaOnevisionImages)


def _shape(width: int, height: int) -> np.ndarray:
    """Return an image without pixels, of shape (channels, height, width)."""
    return np.broadcast_to(np.zeros((3, 1, 1), np.uint8), (3, height, width))


def _without_video(text_class: type[Any], folder: Path, name: str, images: Any, tokenizer: Any) -> Any:
    """Build transformers' processor with an image processor and a tokenizer alone."""
    path = folder / "processor_config.json"
    settings = read_config(path, name) if path.exists() else {}
    names = [key for key in inspect.signature(text_class.__init__).parameters if key not in ("self", "chat_template")]
    values = {key: settings[key] for key in names if isinstance(settings.get(key), int | float | str)}
    parts = {"image_processor": images, "tokenizer": tokenizer, "video_processor": None}
    no_check = {"check_argument_for_proper_class": lambda self, argument_name, argument: None}  # noqa: ARG005
    whole = type(text_class.__name__, (text_class,), no_check)
    return whole(**values, **{key: part for key, part in parts.items() if key in names})
