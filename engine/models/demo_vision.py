"""The demo model with eyes: an Idefics3 of its weights and a small random vision tower, made on first use."""

from collections.abc import Callable
from pathlib import Path

from loratory.engine.models.prepared import (
    DEMO_VISION_ID,
    ModelProgress,
    OnModelProgress,
    Recipe,
    ignore_progress,
    is_prepared,
    prepare_once,
)
from loratory.engine.paths import LoratoryHome
from loratory.engine.processes.json_lines import JsonLinesProcess

_RECIPE = Recipe(made_from="SmolLM2-135M-Instruct with a random tower 1", needed_bytes=300_000_000)


def demo_vision_folder(home: LoratoryHome) -> Path:
    """Return the folder of the demo model with eyes once it is prepared."""
    return home.models / DEMO_VISION_ID


def find_demo_vision(home: LoratoryHome) -> Path | None:
    """Return the folder of the demo model with eyes; None where it is not in this home yet."""
    folder = demo_vision_folder(home)
    return folder if is_prepared(folder, _RECIPE) else None


def prepare_demo_vision(
    find_base: Callable[[], Path], home: LoratoryHome, on_progress: OnModelProgress = ignore_progress
) -> Path:
    """Return the folder of the demo model with eyes, made on first use from the folder of the demo model.

    Raises:
        StorageError: If the disk has no space for it.
        WorkerError: If the process that makes it died, for instance because memory ran out.
    """

    def build(target: Path) -> None:
        base = find_base()
        on_progress(ModelProgress("converting", "Adding a vision tower to the demo model."))
        maker = JsonLinesProcess(
            "loratory.engine.models.families.worker.make_demo", log_file=home.logs / "demo_vision.log"
        )
        try:
            maker.call("make", {"base": str(base), "target": str(target)})
        finally:
            maker.close(timeout_seconds=0.5)

    return prepare_once(demo_vision_folder(home), _RECIPE, build, on_progress)
