"""The parts of a model that see images: a tower over patches, and a projector that makes tokens of what it answers."""

import math
from dataclasses import dataclass, replace

from loratory.engine.errors import MemoryUnknownError
from loratory.engine.models.families.registry import require_family
from loratory.engine.models.shape import ModelShape, ModuleShape

_MATRIX = 2  # dimensions
_HEAD = 64  # features of one head, where those of towers have 64 to 80
_TOKENS_OF_IMAGE = 256  # Gemma 3, whose projector has no product of a size to read


@dataclass(frozen=True)
class Tower:
    """What sees images."""

    shape: ModelShape  # of the tower alone, whose layers are like a decoder's
    patch: tuple[int, ...]  # colors, in some families frames, height, width of what becomes one hidden state
    projector: tuple[ModuleShape, ...]
    pads_images: bool  # a 64-bit number for each pixel shows where an image is, and what is padded is left out

    @property
    def patch_pixels(self) -> int:
        return math.prod(self.patch[-2:])

    @property
    def patches_per_token(self) -> int:
        """Patches that become one token."""
        inputs = [module.in_features for module in self.projector if module.kind == "linear"]
        return max(1, max(inputs) // self.shape.hidden_size if inputs else self.patches_at_once // _TOKENS_OF_IMAGE)

    @property
    def patches_at_once(self) -> int:
        """Patches that attend to one another; 0 where that depends on the image."""
        tables = (module.in_features for module in self.shape.modules if module.kind == "embedding")
        return 0 if self.shape.rotary else next(tables, 0)

    def pixel_bytes(self, pixels: int) -> int:
        """Return the bytes of images as the processor makes them, at 32 bits."""
        patches = pixels // self.patch_pixels
        return patches * (math.prod(self.patch) * 4 + (self.patch_pixels * 8 if self.pads_images else 0))


def read_tower(shape: ModelShape) -> Tower | None:
    """Return the parts of a model that see images; None where it has none, or none on this device.

    Raises:
        MemoryUnknownError: If they are not layers over patches.
    """
    modules = tuple(replace(module, part=None) for module in shape.modules if module.part == "tower")
    if not modules:
        return None
    weights = (module.bare_parameters.get("weight", ()) for module in modules)
    hidden, *patch = next((weight for weight in weights if len(weight) > _MATRIX), (0,))
    if not hidden:
        what = f"What sees images in {shape.architecture} has no product over patches."
        raise MemoryUnknownError(what, "Train it without an estimate: what a run takes is shown while it trains.")
    family = require_family({"model_type": shape.model_type}, shape.architecture)
    heads = hidden // _HEAD if hidden % _HEAD == 0 else 1
    sizes = {"hidden_size": hidden, "num_hidden_layers": 0, "head_dim": hidden // heads, "num_experts": 0}
    sizes |= dict.fromkeys(("num_attention_heads", "num_key_value_heads"), heads)
    kinds = {"gated_mlp": any(module.name.endswith("gate_proj") for module in modules), "rotary": family.rotates}
    own = shape.model_copy(update={"model_type": "", "hidden_act": "gelu", "modules": modules, **sizes, **kinds})
    projector = tuple(module for module in shape.modules if module.part == "projector")
    return Tower(own, tuple(patch), projector, pads_images="pixel_attention_mask" in family.image_inputs)
