"""What tests of exports share: a run on a tiny base, and its export without a process of its own."""

from pathlib import Path
from typing import Any

from loratory.engine.chat.contract import ChatTarget
from loratory.engine.chat.target import plan_load
from loratory.engine.config.results import ExportConfig
from loratory.engine.export.contract import ExportOrder, ExportResult
from loratory.engine.export.folder import staged_folder
from loratory.engine.export.worker.main import run_export
from loratory.engine.hardware.processor import describe_processor
from tests.chat.tiny_adapters import write_trained_run
from tests.recorded_request import RecordedRequest

ASKED = 4  # questions, where the fixture `few_questions` is used


def write_run(folder: Path, base: Path, adapter_config: object, method: str = "lora", **model: Any) -> Path:
    return write_trained_run(folder, base, adapter_config, model=model, adapter={"method": method})


def export(
    home, run: Path, folder: Path, request=None, device=None, llama_cpp: Path | None = None, **settings: Any
) -> ExportResult:
    with staged_folder(folder) as staging:
        order = ExportOrder(
            plan=plan_load(ChatTarget.of_run(run)),
            name=folder.name,
            folder=staging,
            settings=ExportConfig(**settings),
            device=device or describe_processor(),
            run=run,
            llama_cpp=llama_cpp,
        )
        answer = run_export(home, order.model_dump(mode="json"), request or RecordedRequest())
    return ExportResult.model_validate(answer)
