"""What is to be known of a family of vision-language models, without loading one."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

PixelSetting = Literal["min_pixels", "max_pixels", "do_image_splitting"]
ImagePart = Literal["tower", "projector"]


class PixelBudget(Protocol):
    """How large images may be; None is the model's own."""

    @property
    def min_pixels(self) -> int | None: ...

    @property
    def max_pixels(self) -> int | None: ...

    @property
    def do_image_splitting(self) -> bool | None: ...


@dataclass(frozen=True)
class ImageFamily:
    """Where the parts of such a model are, and what it takes besides tokens."""

    model_types: tuple[str, ...]  # of config.json
    label: str
    tower: str  # paths of modules in the loaded ...ForConditionalGeneration
    projector: str  # of some families within the tower
    language_model: str
    image_inputs: tuple[str, ...]  # tensors besides input_ids and attention_mask
    settings: tuple[PixelSetting, ...]  # those of PixelBudget that it has
    typing_input: str | None = None  # which of `image_inputs` has a value for each token: 1 for those of images
    more_projectors: tuple[str, ...] = ()
    takes_virtual_tokens: bool = False
    processor_arguments: tuple[
        PixelSetting, ...
    ] = ()  # those of `settings` that AutoProcessor takes under the same name
    vllm_takes_lora: bool = True  # to the language model; by the classes of vLLM's models (SupportsLoRA)
    rotates: bool = False  # the tower rotates queries and keys by position, over images of any size

    @property
    def projectors(self) -> tuple[str, ...]:
        """Paths of the modules that turn what the tower sees into tokens."""
        return (self.projector, *self.more_projectors)

    def part_of(self, name: str) -> ImagePart | None:
        """Return the part that a module or weight of the model is in; None in the language model and its head."""
        root = self.language_model.rpartition(".")[0]
        if not is_within(name, [root]) or is_within(name, [self.language_model]):
            return None
        in_tower = is_within(name, [self.tower]) and not is_within(name, self.projectors)
        return "tower" if in_tower else "projector"


class Tiles(NamedTuple):
    """How an image is cut: its size after resizing, in rows and columns of tiles."""

    width: int  # pixels
    height: int
    rows: int
    columns: int
    has_overview: bool  # whether the whole image, made smaller, comes with the tiles

    @property
    def pixels(self) -> int:
        """Pixels that the tower sees, those of the overview included."""
        count = self.rows * self.columns
        return self.width * self.height * (count + self.has_overview) // count


class SmallerImage(NamedTuple):
    """What an image becomes with a smaller budget."""

    max_pixels: int
    tokens: int


def is_within(name: str, paths: Sequence[str]) -> bool:
    """Return whether a name is one of the paths of modules, or below one."""
    return any(name == path or name.startswith(f"{path}.") for path in paths)
