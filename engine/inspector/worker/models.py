"""The inspector's process for models: reads their modules. Holds no weights, no GPU."""

import hashlib
import json

import torch

from engine.config.run import ModelConfig
from engine.hardware.libraries import note_architectures
from engine.inspector.worker.inventory import module_inventory
from engine.models.inventory_cache import architecture_values
from engine.paths import LoratoryHome
from engine.processes.messages import JsonObject, Request, serve


class ModelHandlers:
    """Answers questions about models."""

    def __init__(self, home: LoratoryHome) -> None:
        self._home = home

    def module_inventory(self, params: JsonObject, request: Request) -> JsonObject:
        return module_inventory(self._model(params, request), self._home).model_dump(mode="json")

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
    serve({"module_inventory": handlers.module_inventory})


if __name__ == "__main__":
    main()
