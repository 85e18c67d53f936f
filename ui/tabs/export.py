"""Export: the result of a run, to be taken away."""

import hashlib
import zipfile
from pathlib import Path
from typing import Any

import gradio as gr

from engine.errors import EngineError, RunError, StorageError
from ui.errors import shown_as_message, shown_in_place
from ui.page import Page
from ui.run_reader import ObservedRun, has_adapter
from ui.views.adapter_files import list_files, loading_script, render_command_line, render_files, render_script
from ui.views.quantities import size
from ui.views.run_choice import run_choices

_LEAD = (
    '<h2>Take it away</h2><p class="lead">What a run trained is an ordinary PEFT folder: adapter, tokenizer and chat '
    "template. It belongs to you, and works without Loratory.</p>"
)
_EMPTY = (
    '<div class="empty"><b>Nothing to take away yet</b>The result of a run appears here as soon as the run has completed, '
    "or was stopped and saved.</div>"
)
_LATER = (
    '<p class="notice">The last command writes one complete model, for servers that take no adapters, and compares it with '
    "the run. GGUF files and uploads to the Hugging Face Hub are not part of this version; the usual tools for them take "
    "either folder.</p>"
)
_LARGEST_ARCHIVE_BYTES = 4 * 10**9
_COPY_SCRIPT = """
element.addEventListener('click', async (event) => {
  const button = event.target.closest('[data-copy]');
  if (!button) return;
  const text = button.parentElement.querySelector('pre').textContent;
  try { await navigator.clipboard.writeText(text); button.textContent = 'Copied'; }
  catch { getSelection().selectAllChildren(button.parentElement.querySelector('pre')); button.textContent = 'Selected'; }
  setTimeout(() => { button.textContent = 'Copy'; }, 1600);
});
"""


class ExportTab:
    """Lays out the Export tab; `wire` connects it once the whole page stands."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self._tab = page.tab_here()
        gr.HTML(_LEAD)
        self.run = gr.Dropdown([], label="Run", visible=False, elem_id="export-run")
        self.result = gr.HTML(_EMPTY, js_on_load=_COPY_SCRIPT, elem_id="export-result")
        with gr.Row(visible=False, elem_id="export-buttons") as self.buttons:
            self.make = gr.Button("Make a .zip", variant="primary", scale=0, min_width=190, elem_id="make-zip")
            self.download = gr.DownloadButton("Download", visible=False, scale=0, min_width=190, elem_id="download-zip")
        self.use = gr.HTML(js_on_load=_COPY_SCRIPT, elem_id="export-use")
        self.later = gr.HTML(_LATER, visible=False)

    def wire(self) -> None:
        """Connect the events."""
        page = self._page
        quick: dict[str, Any] = {"show_progress": "hidden", "queue": False, "api_visibility": "private"}
        listed = self._tab.select(self._list, [page.chosen_run, self.run], self.run, **quick)
        listed.then(self.show, self.run, self._shown, **quick)
        chosen = self.run.input(lambda run_id: run_id or "", self.run, page.chosen_run, **quick)
        chosen.then(self.show, self.run, self._shown, **quick)
        self.make.click(
            lambda: (gr.update(value="Making it …", interactive=False), gr.update(visible=False)),
            None, [self.make, self.download], queue=False, show_progress="hidden", api_visibility="private",
        ).then(
            shown_as_message(self._archive), self.run, [self.make, self.download], trigger_mode="once",
            show_progress="hidden", api_visibility="private",
        ).then(lambda: gr.update(value="Make a .zip", interactive=True), None, self.make, **quick)  # fmt: skip

    @property
    def _shown(self) -> list[Any]:
        return [self.result, self.use, self.buttons, self.later, self.make, self.download]

    def _list(self, chosen_run: str, current: str | None) -> Any:
        reader = self._page.reader
        rows = reader.offered(has_adapter)
        choices = run_choices(rows)
        ids = [value for _, value in choices]
        proposed = next((run for run in (chosen_run, current) if run in ids), ids[0] if ids else None)
        return gr.update(choices=choices, value=proposed, visible=bool(ids))

    def show(self, run_id: str | None) -> tuple[Any, ...]:
        """The files of a run's result, and how they are used."""
        gone = gr.update(visible=False)
        if not run_id:
            return _EMPTY, "", gone, gone, gr.skip(), gone
        result = self._result(run_id)
        try:
            use = self._use(run_id)
        except EngineError:
            return result, "", gone, gone, gr.skip(), gone  # `result` says what is wrong
        ready = gr.update(visible=True)
        return result, use, ready, ready, gr.update(value="Make a .zip", interactive=True), gone

    def _result(self, run_id: str) -> str:
        return shown_in_place(self._files)(run_id)

    def _files(self, run_id: str) -> str:
        folder = self._finished(run_id).run.folder.adapter
        return render_files(folder, list_files(folder))

    def _use(self, run_id: str) -> str:
        observed = self._finished(run_id)
        base = observed.config.model.id if observed.config is not None else ""
        return render_script(loading_script(observed.run.folder.adapter, base)) + render_command_line(observed.run.id)

    def _finished(self, run_id: str) -> ObservedRun:
        observed = self._page.reader.observe(run_id)
        if not observed.has_adapter:
            raise RunError(f"“{observed.title}” has no result yet.", "Wait for its end, or stop and save it.")
        return observed

    def _archive(self, run_id: str) -> tuple[Any, Any]:
        observed = self._finished(run_id)
        # Inside the page's own cache a file is served as it stands, and swept with the rest.
        folder = Path(self.download.GRADIO_CACHE) / hashlib.sha256(observed.run.id.encode()).hexdigest()
        path = make_archive(observed.run.folder.adapter, folder, observed.title)
        label = f"Download {path.name} ({size(path.stat().st_size)})"
        return gr.skip(), gr.update(value=str(path), label=label, visible=True)


def make_archive(folder: Path, target: Path, title: str) -> Path:
    """Pack the files of a result into one .zip; safetensors do not shrink, so they are stored as they are.

    Raises:
        StorageError: If it would be too large for one download, or the disk is full.
    """
    files = list_files(folder)
    total = sum(file.bytes for file in files)
    if total > _LARGEST_ARCHIVE_BYTES:
        raise StorageError(
            f"The result is {size(total)}, too large for one download.", "Copy its folder from the path shown above."
        )
    name = (
        "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in title).strip("-")[:60] or "adapter"
    )
    while "--" in name:
        name = name.replace("--", "-")
    try:
        target.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = target / f"{name}.zip"
        unfinished = path.with_suffix(".unfinished")
        with zipfile.ZipFile(unfinished, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
            for file in files:
                archive.write(folder / file.name, f"{name}/{file.name}")
        unfinished.replace(path)
    except OSError as error:
        raise StorageError(f"The .zip cannot be written ({error.strerror}).", "Free some space.") from error
    return path
