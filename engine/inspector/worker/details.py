"""What a model's tokenizer and files add to its details; needs no torch."""

from pathlib import Path

from engine.config.run import ModelConfig
from engine.errors import ModelError
from engine.inspector.worker.load_tokenizer import open_tokenizer
from engine.models.catalog import find_in_catalog
from engine.models.demo import DEMO_MODEL_ID, is_demo_prepared
from engine.models.folder import ModelPart, license_in, read_config, tokenizer_files_fingerprint
from engine.models.shape import ModelDetails
from engine.models.source import ModelSource, resolve_model
from engine.paths import LoratoryHome
from engine.processes.messages import JsonObject, Request

_DEMO_NOT_HERE = "The demo model is not on this machine yet. It is fetched (93 MB) and unpacked once; then its chat template is shown here."


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
        source = resolve_model(model, home, part=ModelPart.TOKENIZER)
        if request is not None:
            request.work_with(tokenizer_files_fingerprint(Path(source.location)))
        return details.model_copy(update=_from_files(source, find_in_catalog(model.id) is not None))
    except ModelError as error:
        return details.model_copy(update={"tokenizer_missing": str(error)})


def _from_files(source: ModelSource, is_in_catalog: bool) -> dict[str, object]:
    folder = Path(source.location)
    tokenizer = open_tokenizer(source)
    template = tokenizer.chat_template
    if isinstance(template, dict):  # several, by name
        template = template.get("default") or next(iter(template.values()), None)
    config = read_config(folder / "config.json", source.name)
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
        facts |= {"name": source.name, "hub_id": source.hub_id, "license": license_in(folder)}
    return facts


def answer_details(params: JsonObject, request: Request, home: LoratoryHome) -> JsonObject:
    """Answer a question for the details of a model."""
    details, model = ModelDetails.model_validate(params["described"]), ModelConfig.model_validate(params["model"])
    return complete_details(details, model, home, request).model_dump(mode="json")
