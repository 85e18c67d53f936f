"""The inspector's process for models: reads their modules and describes them. Holds no weights, no GPU."""

import hashlib
import json
from pathlib import Path

import torch

from engine.config.run import ModelConfig
from engine.errors import ModelError
from engine.hardware.libraries import note_architectures
from engine.inspector.worker.inventory import module_inventory
from engine.inspector.worker.load_tokenizer import open_tokenizer
from engine.models.catalog import find_in_catalog
from engine.models.demo import DEMO_MODEL_ID, is_demo_prepared
from engine.models.folder import ModelPart, license_in, read_config
from engine.models.inventory_cache import architecture_values
from engine.models.shape import ModelDetails
from engine.models.source import ModelSource, resolve_model
from engine.paths import LoratoryHome
from engine.processes.messages import JsonObject, Request, serve

_DEMO_NOT_HERE = "The demo model is not on this machine yet. It is fetched (93 MB) and unpacked once; then its chat template is shown here."


def model_details(model: ModelConfig, home: LoratoryHome) -> ModelDetails:
    """Describe a model; fetches its configuration and tokenizer, never its weights.

    A model of the catalogue is described also where the Hub is out of reach; the facts about its tokenizer are left out then.

    Raises:
        ModelError: If it cannot be found, or its configuration describes none.
    """
    shape = module_inventory(model, home)
    entry = find_in_catalog(model.id)
    details = ModelDetails(
        name=entry.title if entry else model.id,
        hub_id=entry.hub_id if entry else None,
        parameters=shape.num_parameters,
        dtype="",
        linear_names=shape.linear_names(),
        license=entry.license if entry else None,
        **shape.model_dump(include=set(ModelDetails.model_fields)),
    )
    if model.id.strip() == DEMO_MODEL_ID and not is_demo_prepared(home):
        return details.model_copy(update={"tokenizer_missing": _DEMO_NOT_HERE})
    try:
        source = resolve_model(model, home, part=ModelPart.TOKENIZER)
        return details.model_copy(update=_from_files(source, entry is not None))
    except ModelError as error:
        return details.model_copy(update={"tokenizer_missing": str(error)})


def _from_files(source: ModelSource, is_in_catalog: bool) -> dict[str, object]:
    folder = Path(source.location)
    tokenizer = open_tokenizer(source)
    template = tokenizer.chat_template
    if isinstance(template, dict):  # several, by name
        template = template.get("default") or next(iter(template.values()), None)
    config = read_config(folder / "config.json", source.name)
    found: dict[str, object] = {
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
        found |= {"name": source.name, "hub_id": source.hub_id, "license": license_in(folder)}
    return found


class ModelHandlers:
    """Answers questions about models."""

    def __init__(self, home: LoratoryHome) -> None:
        self._home = home

    def module_inventory(self, params: JsonObject, request: Request) -> JsonObject:
        return module_inventory(self._model(params, request), self._home).model_dump(mode="json")

    def model_details(self, params: JsonObject, request: Request) -> JsonObject:
        return model_details(self._model(params, request), self._home).model_dump(mode="json")

    def _model(self, params: JsonObject, request: Request) -> ModelConfig:
        model = ModelConfig.model_validate(params["model"])
        values = json.dumps(architecture_values(model, self._home), sort_keys=True)
        request.work_with(hashlib.sha256(values.encode()).hexdigest())
        return model


def main() -> None:
    """Answer until stdin closes."""
    home = LoratoryHome.from_environment()
    note_architectures(home, str(torch.__version__), torch.cuda.get_arch_list())
    handlers = ModelHandlers(home)
    serve({"module_inventory": handlers.module_inventory, "model_details": handlers.model_details})


if __name__ == "__main__":
    main()
