"""The inspector's process for models: reads their modules and describes them. Holds no weights, no GPU."""

import torch

from engine.config.model import ModelConfig
from engine.hardware.torch_build import note_architectures
from engine.inspector.details import model_details
from engine.inspector.inventory import module_inventory
from engine.paths import LoratoryHome
from engine.processes.answering import Request, serve
from engine.processes.json_lines import JsonObject


class ModelHandlers:
    """Answers questions about models.

    Args:
        home: Holds models and caches.
    """

    def __init__(self, home: LoratoryHome) -> None:
        self._home = home

    def module_inventory(self, params: JsonObject, _request: Request) -> JsonObject:
        return module_inventory(ModelConfig.model_validate(params["model"]), self._home).model_dump(mode="json")

    def model_details(self, params: JsonObject, _request: Request) -> JsonObject:
        return model_details(ModelConfig.model_validate(params["model"]), self._home).model_dump(mode="json")


def main() -> None:
    """Answer until stdin closes."""
    home = LoratoryHome.from_environment()
    note_architectures(home, str(torch.__version__), torch.cuda.get_arch_list())
    handlers = ModelHandlers(home)
    serve({"module_inventory": handlers.module_inventory, "model_details": handlers.model_details})


if __name__ == "__main__":
    main()
