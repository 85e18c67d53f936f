"""The process that exports: `python -P -m engine.export.worker.main HOME`, JSON lines on stdio."""

import os
import sys
from pathlib import Path

from transformers.utils import logging as transformers_logging

from engine.errors import StorageError
from engine.export.card import gather_facts, write_card
from engine.export.contract import ExportOrder, ExportProgress, ExportResult
from engine.export.folder import list_files, require_space, to_disk
from engine.export.worker.write import ExportUnderWay
from engine.export.worker.writers import WRITERS
from engine.models.prepared import ModelProgress
from engine.models.source import resolve_model
from engine.paths import LoratoryHome
from engine.processes.messages import JsonObject, Request, serve
from engine.processes.spawn import Access, give_up_access


class ExportWorker:
    """Answers the orders of `engine.export.job`."""

    def __init__(self, home: LoratoryHome) -> None:
        self._home = home

    def export(self, params: JsonObject, request: Request) -> JsonObject:
        """Fill the folder and verify what is in it."""
        order = ExportOrder.model_validate(params)

        def report_fetching(progress: ModelProgress) -> None:
            done, total = progress.done_bytes, progress.total_bytes
            fraction = done / total if done is not None and total else None
            fetching = ExportProgress(phase="fetching", message=progress.message, fraction=fraction)
            request.progress(fetching.model_dump(mode="json"))

        source = resolve_model(order.plan.model, self._home, report_fetching)
        give_up_access(Access.HUB)
        export = ExportUnderWay(order, source, request, self._home.server)
        notes: list[str] = []
        aside = order.folder
        try:
            writer = WRITERS[order.settings.kind]
            require_space(aside, writer.needed_bytes(export))
            verified = writer.write(export, aside, notes)
            (aside / "README.md").write_text(_card(export), encoding="utf-8")
            export.report("ready", "Putting the folder in its place.", 1.0)
            to_disk(aside)
        except OSError as error:
            raise StorageError(
                f"{order.name} cannot be written ({error.strerror}).", "Free some space, or choose another folder."
            ) from error
        result = ExportResult(path=order.folder, files=list_files(order.folder), verified=verified, notes=tuple(notes))
        return result.model_dump(mode="json")


def _card(export: ExportUnderWay) -> str:
    source = export.source
    facts = gather_facts(
        export.order.plan,
        export.order.settings.kind,
        export.order.name,
        source.hub_id or source.name,
        base_is_on_hub=source.hub_id is not None,
        run=export.order.run,
        base_folder=Path(source.location),
    )
    return write_card(facts)


def main() -> None:
    """Serve until stdin closes."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    serve({"export": ExportWorker(LoratoryHome(Path(sys.argv[1]))).export})


if __name__ == "__main__":
    main()
