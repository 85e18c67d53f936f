"""What tests of exports share: a run on a tiny base, and its export without a process of its own."""

from pathlib import Path
from typing import Any

from engine.chat.contract import ChatTarget
from engine.chat.target import plan_load
from engine.config.load import config_from_mapping, config_to_yaml
from engine.config.results import ExportConfig
from engine.export.contract import ExportOrder, ExportResult
from engine.export.folder import made_aside
from engine.export.worker.main import run_export
from engine.hardware.processor import describe_processor
from tests.chat.tiny_adapters import make_adapter
from tests.recorded_request import RecordedRequest

ASKED = 4  # questions, where the fixture `few_questions` is used


def write_run(folder: Path, base: Path, adapter_config: object, method: str = "lora", **model: Any) -> Path:
    config = config_from_mapping(
        {
            "model": {"id": str(base), **model},
            "dataset": {"source": "/home/somebody/secret-data/rows.jsonl"},
            "adapter": {"method": method},
            "run": {"name": "my run"},
        }
    )
    make_adapter(base, folder / "adapter", adapter_config)
    (folder / "config.yaml").write_text(config_to_yaml(config))
    return folder


def export(home, run: Path, folder: Path, request=None, **settings: Any) -> ExportResult:
    with made_aside(folder) as aside:
        order = ExportOrder(
            plan=plan_load(ChatTarget.of_run(run)),
            name=folder.name,
            folder=aside,
            settings=ExportConfig(**settings),
            device=describe_processor(),
            run=run,
        )
        answer = run_export(home, order.model_dump(mode="json"), request or RecordedRequest())
    return ExportResult.model_validate(answer)
