"""The one way to load a tokenizer: complete, and with its template frozen; and what it adds to the details of a model."""

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from loratory.engine.config.run import ModelConfig
from loratory.engine.data.render.template import FrozenTemplate, freeze_template, rendering_confined
from loratory.engine.errors import ModelError, ModelLimitError
from loratory.engine.models import folder as model_files
from loratory.engine.models.catalog import find_in_catalog
from loratory.engine.models.families.base import PixelBudget
from loratory.engine.models.prepared import DEMO_MODEL_ID, is_demo_prepared
from loratory.engine.models.shape import ModelDetails
from loratory.engine.models.source import ModelSource, resolve_model
from loratory.engine.paths import LoratoryHome
from loratory.engine.processes.limits import limited
from loratory.engine.processes.messages import Request

# Reading a vocabulary of the largest size and turning it into a fast tokenizer take less than half of each.
_LOAD_SECONDS = 20.0
_LOAD_MEMORY_BYTES = 5 << 28  # 1.25 GiB
_DEMO_NOT_HERE = "The demo model is not on this machine yet. It is fetched (93 MB) and unpacked once; then its chat template is shown here."


def load_tokenizer(
    source: ModelSource, budget: PixelBudget | None = None, base: Path | None = None
) -> tuple[Any, FrozenTemplate]:
    """Load a model's tokenizer, ready for rendering, training and chat.

    Args:
        source: The model, or an adapter with the tokenizer that it was trained with.
        budget: How large images may be, where the model takes some.
        base: The folder of an adapter's model.

    Returns:
        A fast tokenizer of transformers, with a template, an eos token and a pad token of its own; and what was
        settled about it. Saving it with `save_pretrained` saves the template that training uses. Where the model takes
        images, its attribute `image_text` is their processor.

    Raises:
        ModelError: If there is none, or it does not report which characters its tokens come from.
    """
    tokenizer = open_tokenizer(source)
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(
            f"The tokenizer of {source.name} does not report which characters its tokens come from.",
            "Choose a model with a tokenizer.json; without it, trained tokens cannot be marked exactly.",
        )
    tokenizer.image_text = _load_images(base or Path(source.location), tokenizer, budget)
    with rendering_confined(0):
        return tokenizer, freeze_template(tokenizer)


def _load_images(folder: Path, tokenizer: Any, budget: PixelBudget | None) -> Any:
    """Load the image processor of a model; None where it takes no images, or its files for them are missing."""
    has_files = any((folder / name).exists() for name in ("preprocessor_config.json", "processor_config.json"))
    if not has_files or model_files.family_in(folder, tokenizer.name_or_path) is None:
        return None
    from loratory.engine.models.families.worker.processor import ImageProcessor

    with limited(_LOAD_SECONDS, _LOAD_MEMORY_BYTES):
        return ImageProcessor.load(folder, tokenizer, budget)


def open_tokenizer(source: ModelSource) -> Any:
    """Load a model's tokenizer as it was published, its files within the limits.

    Raises:
        ModelError: If there is none, it is damaged, or a file of it is too big.
    """
    model_files.check_tokenizer_files(Path(source.location), source.name)
    try:
        with limited(_LOAD_SECONDS, _LOAD_MEMORY_BYTES):
            tokenizer = AutoTokenizer.from_pretrained(source.location, local_files_only=True, trust_remote_code=False)
    except MemoryError as error:
        raise ModelLimitError(
            f"The tokenizer of {source.name} needs more memory than it may use.", "Use the original files of the model."
        ) from error
    except Exception as error:  # broken files surface as nearly any exception
        raise ModelError(
            f"The tokenizer of {source.name} cannot be loaded ({type(error).__name__}).",
            "Check that the model is complete and that its files are those of a text model.",
        ) from error
    legacy = Path(source.location) / "chat_template.json"  # of processors; transformers prefers it to the tokenizer's
    if legacy.exists() and not legacy.with_suffix(".jinja").exists():
        tokenizer.chat_template = model_files.read_config(legacy, source.name).get("chat_template")
    model_files.check_template_length(tokenizer.chat_template, source.name)
    tokenizer.name_or_path = source.name  # a path elsewhere; errors name it, and it is not saved
    return tokenizer


def complete_details(
    details: ModelDetails, model: ModelConfig, home: LoratoryHome, request: Request | None = None
) -> ModelDetails:
    """Return the details with what tokenizer and files add; fetches the tokenizer, never the weights.

    A model of the catalogue is described also where the Hub is out of reach; the facts about its tokenizer are left out then.

    Raises:
        ModelLimitError: If its files are known to overrun.
    """
    if model.id.strip() == DEMO_MODEL_ID and not is_demo_prepared(home):
        return details.model_copy(update={"tokenizer_missing": _DEMO_NOT_HERE})
    try:
        source = resolve_model(model, home, part=model_files.ModelPart.TOKENIZER)
        if request is not None:
            request.work_with(model_files.tokenizer_files_fingerprint(Path(source.location)))
        return details.model_copy(update=_from_files(source, find_in_catalog(model.id) is not None))
    except ModelError as error:
        return details.model_copy(update={"tokenizer_missing": str(error)})


def _from_files(source: ModelSource, is_in_catalog: bool) -> dict[str, object]:
    folder = Path(source.location)
    tokenizer = open_tokenizer(source)
    template = tokenizer.chat_template
    if isinstance(template, dict):  # several, by name
        template = template.get("default") or next(iter(template.values()), None)
    config = model_files.read_config(folder / "config.json", source.name)
    facts: dict[str, object] = {
        "dtype": str(config.get("dtype") or config.get("torch_dtype") or ""),
        "size_bytes": sum(path.stat().st_size for path in folder.glob("*.safetensors")) or None,
        "tokenizer_tokens": len(tokenizer),
        "special_tokens": {
            name: str(token)
            for name in ("bos", "eos", "pad", "unk")
            if (token := getattr(tokenizer, f"{name}_token", None)) is not None
        },
        "chat_template": template or None,
    }
    if not is_in_catalog:
        facts |= {"name": source.name, "hub_id": source.hub_id, "license": model_files.license_in(folder)}
    return facts
