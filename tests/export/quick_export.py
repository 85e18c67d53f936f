"""An export without a model, for tests of what is done with it."""

from engine.export.contract import ExportResult, Verification
from engine.export.folder import list_files
from tests.export.push_folders import adapter_folder


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
        verified = Verification(
            passed=self._passed,
            compared="the export with the run",
            prompts=20,
            equal_answers=20,
            largest_logit_difference=0.5,
            allowed_logit_difference=0.1,
            dtype="float32",
            seconds=1.0,
        )
        return ExportResult(path=folder, files=list_files(folder), verified=verified)

    def stop(self) -> None:
        pass
