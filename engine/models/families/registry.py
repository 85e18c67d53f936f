"""The families of vision-language models that are supported, by the `model_type` of config.json."""

from collections.abc import Mapping
from typing import Any

from loratory.engine.errors import ModelError, shorten
from loratory.engine.models.families.base import ImageFamily

_IDEFICS3 = ImageFamily(
    model_types=("idefics3", "smolvlm"),
    label="Idefics3 and SmolVLM",
    tower="model.vision_model",
    projector="model.connector",
    language_model="model.text_model",
    image_inputs=("pixel_values", "pixel_attention_mask"),
    settings=("max_pixels", "do_image_splitting"),
    processor_arguments=("do_image_splitting",),
    takes_virtual_tokens=True,
)


def _qwen(model_type: str, label: str, more_projectors: tuple[str, ...] = ()) -> ImageFamily:
    return ImageFamily(
        model_types=(model_type,),
        label=label,
        tower="model.visual",
        projector="model.visual.merger",
        more_projectors=more_projectors,
        language_model="model.language_model",
        image_inputs=("pixel_values", "image_grid_thw", "mm_token_type_ids"),
        settings=("min_pixels", "max_pixels"),
        processor_arguments=("min_pixels", "max_pixels"),
        typing_input="mm_token_type_ids",
        rotates=True,
    )


_GEMMA3 = ImageFamily(
    model_types=("gemma3",),
    label="Gemma 3",
    tower="model.vision_tower",
    projector="model.multi_modal_projector",
    language_model="model.language_model",
    image_inputs=("pixel_values", "token_type_ids"),
    settings=(),
    typing_input="token_type_ids",
)
_LLAVA_ONEVISION = ImageFamily(
    model_types=("llava_onevision",),
    label="LLaVA-OneVision",
    tower="model.vision_tower",
    projector="model.multi_modal_projector",
    language_model="model.language_model",
    image_inputs=("pixel_values", "image_sizes", "batch_num_images"),
    settings=("max_pixels",),
    vllm_takes_lora=False,
    takes_virtual_tokens=True,
)
FAMILIES: tuple[ImageFamily, ...] = (
    _IDEFICS3,
    _qwen("qwen2_vl", "Qwen2-VL"),
    _qwen("qwen2_5_vl", "Qwen2.5-VL"),
    _qwen("qwen3_vl", "Qwen3-VL", ("model.visual.deepstack_merger_list",)),
    _GEMMA3,
    _LLAVA_ONEVISION,
)


def family_of(config: Mapping[str, Any]) -> ImageFamily | None:
    """Return the family of a model by its config.json; None for text models and for families that are not supported."""
    model_type = config.get("model_type")
    return next((family for family in FAMILIES if model_type in family.model_types), None)


def require_family(config: Mapping[str, Any], name: str) -> ImageFamily:
    """Return the family of a model that is to take images.

    Raises:
        ModelError: If it takes none, or its family is not supported.
    """
    family = family_of(config)
    if family is not None:
        return family
    model_type = shorten(str(config.get("model_type")))
    what = f"{name} ({model_type}) takes no images."
    if "vision_config" in config:
        what = f"{name} takes images, but its family ({model_type}) is not supported."
    raise ModelError(what, f"Choose a model of one of these families: {', '.join(each.label for each in FAMILIES)}.")
