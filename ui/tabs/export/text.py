"""Script and YAML: a run as text, to be read, copied and downloaded."""

import hashlib
from pathlib import Path
from typing import Any

import gradio as gr

from engine.config.load import config_to_yaml
from engine.config.run import RunConfig
from engine.errors import EngineError, RunError, StorageError
from ui.backend.run_reader import ObservedRun
from ui.errors import trouble
from ui.page import Page
from ui.tabs.export.archive import COPY_SCRIPT
from ui.tabs.export.forms import SHORT, YAML
from ui.views.adapter_files import render_copyable

SCRIPT_FILE, YAML_FILE = "train.py", "config.yaml"


class TextPart:
    """Lays out the text with its download."""

    def __init__(self, page: Page) -> None:
        self._page = page
        with gr.Column(visible=False, elem_id="export-text") as self.panel:
            self.download = gr.DownloadButton(
                "Download", visible=False, variant="primary", scale=0, min_width=190, elem_id="download-text"
            )
            self.shown = gr.HTML(js_on_load=COPY_SCRIPT, elem_id="export-text-shown")

    def of(self, form: str, observed: ObservedRun) -> tuple[str, Any]:
        """The text of a run, and its download; in the text's place what is wrong."""
        try:
            if observed.config is None:
                raise RunError("This run's config.yaml cannot be read.", "Restore it from a copy.")
            name = YAML_FILE if form == YAML else SCRIPT_FILE
            text = config_to_yaml(observed.config) if form == YAML else self._script(observed, observed.config, form)
            path = self._file(name, text, observed.run.id)
        except EngineError as error:
            return trouble(error), gr.update(visible=False)
        return render_copyable(text, name), gr.update(value=str(path), label=f"Download {name}", visible=True)

    def _script(self, observed: ObservedRun, config: RunConfig, form: str) -> str:
        # Brings the readers of all data formats along, which would double what our own part of the start takes.
        from engine.export.script.write import gather_script_facts, write_script, write_short_script

        facts = gather_script_facts(config, self._page.services.home, observed.run.folder)
        return write_short_script(facts) if form == SHORT else write_script(facts)

    def _file(self, name: str, text: str, run_id: str) -> Path:
        # Inside the page's own cache a file is served as it stands, and swept with the rest.
        folder = Path(self.download.GRADIO_CACHE) / hashlib.sha256(f"{run_id}{text}".encode()).hexdigest()
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            path = folder / name
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise StorageError(f"{name} cannot be written ({error.strerror}).", "Free some space.") from error
        return path
