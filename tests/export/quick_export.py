"""An export without a model, for tests of what is done with it."""

from loratory.engine.export.contract import ExportResult, Verification
from loratory.engine.export.folder import list_files
from tests.export.push_folders import adapter_folder


def verification(passed: bool, largest_difference: float = 0.5, allowed_difference: float = 0.1) -> Verification:
    """Return the verification of an export."""
    return Verification(
        passed=passed,
        comparison="the export with the run",
        prompts=20,
        equal_answers=20,
        largest_logit_difference=largest_difference,
        allowed_logit_difference=allowed_difference,
        dtype="float32",
        seconds=1.0,
    )


class QuickExport:
    """Writes what an export writes, without loading a model."""

    def __init__(self, passed: bool = True, extra: str = "") -> None:
        self.runs = 0
        self._passed = passed
        self._extra = extra

    def __call__(self, home, request):
        self._request = request
        return self

    def run(self, on_progress):
        self.runs += 1
        folder = adapter_folder(self._request.folder)
        if self._extra:
            (folder / "chat_template.jinja").write_text(self._extra)
        return ExportResult(path=folder, files=list_files(folder), verified=verification(self._passed))

    def stop(self) -> None:
        pass
