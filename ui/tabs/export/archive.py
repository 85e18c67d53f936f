"""A folder that was written, as one download."""

import contextlib
import hashlib
import re
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from engine.errors import StorageError
from ui.backend.transfers import Transfers
from ui.errors import shown_as_message
from ui.page import Page
from ui.views.adapter_files import list_files
from ui.views.quantities import size

COPY_SCRIPT = """
element.addEventListener('click', async (event) => {
  const button = event.target.closest('[data-copy]');
  if (!button) return;
  const text = button.parentElement.querySelector('pre').textContent;
  try { await navigator.clipboard.writeText(text); button.textContent = 'Copied'; }
  catch { getSelection().selectAllChildren(button.parentElement.querySelector('pre')); button.textContent = 'Selected'; }
  setTimeout(() => { button.textContent = 'Copy'; }, 1600);
});
"""


class ArchivePart:
    """Lays out two buttons: make a .zip, then download it."""

    def __init__(self, page: Page) -> None:
        self._page = page
        with gr.Row(visible=False, elem_id="export-archive") as self.panel:
            self.make = gr.Button("Make a .zip", scale=0, min_width=160, elem_id="make-zip")
            self.download = gr.DownloadButton("Download", visible=False, scale=0, min_width=190, elem_id="download-zip")

    def wire(self, inputs: Sequence[Any], find: Callable[..., tuple[Path, str]]) -> None:
        """Connect the events; `find` gives the folder and its title for the values of `inputs`."""
        quick: dict[str, Any] = {"show_progress": "hidden", "queue": False, "api_visibility": "private"}

        def archive(*values: Any) -> Any:
            folder, title = find(*values)
            path = make_archive(folder, title, self._page.services.transfers)
            label = f"Download {path.name} ({size(path.stat().st_size)})"
            return gr.update(value=str(path), label=label, visible=True)

        self.make.click(
            lambda: (gr.update(value="Making it …", interactive=False), gr.update(visible=False)),
            None, [self.make, self.download], **quick,
        ).then(
            shown_as_message(archive), list(inputs), self.download, trigger_mode="once", show_progress="hidden",
            api_visibility="private",
        ).then(lambda: gr.update(value="Make a .zip", interactive=True), None, self.make, **quick)  # fmt: skip


def make_archive(folder: Path, title: str, transfers: Transfers) -> Path:
    """Pack the files of a result into one .zip; safetensors do not shrink, so they are stored as they are.

    Args:
        folder: The result.
        title: What the file is named for.
        transfers: Where it is written: Gradio serves what lies there as it is.

    Raises:
        StorageError: If it would be too large for one download, or there is no room for it.
    """
    files = list_files(folder)
    name = re.sub(r"\W+", "-", title).strip("-")[:60] or "result"
    target = transfers.home.transfers / hashlib.sha256(str(folder).encode()).hexdigest()
    path = target / f"{name}.zip"
    unfinished = path.with_suffix(".unfinished")
    too_large = "Copy its folder from the path shown above."
    with transfers.room_for(sum(file.bytes for file in files), instead=too_large):
        try:
            target.mkdir(mode=0o700, parents=True, exist_ok=True)
            with zipfile.ZipFile(unfinished, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
                for file in files:
                    archive.write(folder / file.name, f"{name}/{file.name}")
            unfinished.replace(path)
        except OSError as error:
            with contextlib.suppress(OSError):
                unfinished.unlink()
            raise StorageError(f"The .zip cannot be written ({error.strerror}).", "Free some space.") from error
    return path
