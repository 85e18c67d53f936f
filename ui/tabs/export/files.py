"""Downloads: a written folder as one .zip, and a run as script or YAML."""

import contextlib
import hashlib
import re
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from engine.config.load import config_to_yaml
from engine.config.run import RunConfig
from engine.errors import EngineError, RunError, StorageError
from ui.backend.run_reader import ObservedRun
from ui.backend.transfers import Transfers
from ui.components import COPY_SCRIPT, HIDDEN, QUICK, SLOW, Updates, shown_as_message
from ui.page import Page
from ui.tabs.export.forms import SHORT, YAML
from ui.views.html import copyable, error_box, size


class ArchivePart:
    """Lays out two buttons: make a .zip, then download it."""

    def __init__(self, page: Page) -> None:
        self._page = page
        with gr.Row(visible=False, elem_id="export-archive") as self.panel:
            self.make = gr.Button("Make a .zip", scale=0, min_width=160, elem_id="make-zip")
            self.download = gr.DownloadButton("Download", visible=False, scale=0, min_width=190, elem_id="download-zip")

    def wire(self, inputs: Sequence[Any], find: Callable[..., Path]) -> None:
        """Connect the events; `find` returns the folder for the values of `inputs`."""

        def archive(*values: Any) -> Any:
            folder = find(*values)
            path = make_archive(folder, folder.name, self._page.services.transfers)
            label = f"Download {path.name} ({size(path.stat().st_size)})"
            return gr.update(value=str(path), label=label, visible=True)

        begun = self.make.click(
            lambda: (gr.update(value="Making it …", interactive=False), HIDDEN),
            None,
            [self.make, self.download],
            **QUICK,
        )
        made = begun.then(shown_as_message(archive), list(inputs), self.download, trigger_mode="once", **SLOW)
        made.then(lambda: gr.update(value="Make a .zip", interactive=True), None, self.make, **QUICK)


def make_archive(folder: Path, title: str, transfers: Transfers) -> Path:
    """Pack the files of a result into one .zip; safetensors do not shrink, and are stored as they are.

    Args:
        folder: The result.
        title: Name of the .zip.
        transfers: Where it is written: Gradio serves the files there.

    Raises:
        StorageError: If it would be too large for one download, or there is no room for it.
    """
    files = list_files(folder)
    name = re.sub(r"\W+", "-", title).strip("-")[:60] or "result"
    target = transfers.home.transfers / hashlib.sha256(str(folder).encode()).hexdigest()
    path = target / f"{name}.zip"
    unfinished = path.with_suffix(".unfinished")
    bytes_ = sum((folder / file).stat().st_size for file in files)
    with transfers.room_for(bytes_, instead="Copy its folder from the path shown above."):
        try:
            target.mkdir(mode=0o700, parents=True, exist_ok=True)
            with zipfile.ZipFile(unfinished, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
                for file in files:
                    archive.write(folder / file, f"{name}/{file}")
            unfinished.replace(path)
        except OSError as error:
            with contextlib.suppress(OSError):
                unfinished.unlink()
            raise StorageError(f"The .zip cannot be written ({error.strerror}).", "Free some space.") from error
    return path


def list_files(folder: Path) -> list[str]:
    """Return the regular files below `folder`, sorted; links are left out, since they may lead elsewhere."""
    return [
        path.relative_to(folder).as_posix()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.is_symlink() and not path.parent.is_symlink()
    ]


class TextPart:
    """Lays out a run as text, to read, copy and download."""

    def __init__(self, page: Page) -> None:
        self._page = page
        with gr.Column(visible=False, elem_id="export-text") as self.panel:
            self.download = gr.DownloadButton(
                "Download", visible=False, variant="primary", scale=0, min_width=190, elem_id="download-text"
            )
            self.text = gr.HTML(js_on_load=COPY_SCRIPT, elem_id="export-text-shown")

    def updates(self, form: str, observed: ObservedRun) -> Updates:
        """Return the text of a run with its download; where that fails, the error."""
        try:
            if observed.config is None:
                raise RunError("This run's config.yaml cannot be read.", "Restore it from a copy.")
            name = "config.yaml" if form == YAML else "train.py"
            text = config_to_yaml(observed.config) if form == YAML else self._script(observed, observed.config, form)
            path = self._file(name, text, observed.run.id)
        except EngineError as error:
            return {self.text: error_box(error), self.download: HIDDEN}
        download = gr.update(value=str(path), label=f"Download {name}", visible=True)
        return {self.text: copyable(text, name), self.download: download}

    def _script(self, observed: ObservedRun, config: RunConfig, form: str) -> str:
        # It imports the readers of all data formats, which would double our own part of the start.
        from engine.export.script.write import gather_script_facts, write_script, write_short_script

        facts = gather_script_facts(config, self._page.services.home, observed.run.folder)
        return write_short_script(facts) if form == SHORT else write_script(facts)

    def _file(self, name: str, text: str, run_id: str) -> Path:
        # Inside the page's own cache a file is served as it is, and swept with the rest.
        folder = Path(self.download.GRADIO_CACHE) / hashlib.sha256(f"{run_id}{text}".encode()).hexdigest()
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            path = folder / name
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise StorageError(f"{name} cannot be written ({error.strerror}).", "Free some space.") from error
        return path
