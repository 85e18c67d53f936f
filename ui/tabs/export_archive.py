"""A folder that was written, as one download."""

import hashlib
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from engine.errors import StorageError
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
_LARGEST_ARCHIVE_BYTES = 4 * 10**9


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
            # Inside the page's own cache a file is served as it stands, and swept with the rest.
            key = hashlib.sha256(str(folder).encode()).hexdigest()
            path = make_archive(folder, Path(self.download.GRADIO_CACHE) / key, title)
            label = f"Download {path.name} ({size(path.stat().st_size)})"
            return gr.update(value=str(path), label=label, visible=True)

        self.make.click(
            lambda: (gr.update(value="Making it …", interactive=False), gr.update(visible=False)),
            None, [self.make, self.download], **quick,
        ).then(
            shown_as_message(archive), list(inputs), self.download, trigger_mode="once", show_progress="hidden",
            api_visibility="private",
        ).then(lambda: gr.update(value="Make a .zip", interactive=True), None, self.make, **quick)  # fmt: skip


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
        "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in title).strip("-")[:60] or "result"
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
