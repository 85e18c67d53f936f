"""The formats of an export: the settings of each, a written folder as one .zip, and a run as script or YAML."""

import contextlib
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from loratory.engine.config.load import config_to_yaml
from loratory.engine.config.results import ExportConfig, PushConfig
from loratory.engine.config.run import RunConfig
from loratory.engine.errors import EngineError, ModelError, RunError, explain_os_errors
from loratory.engine.evaluation.server_check import ServerCheckConfig
from loratory.engine.export.compressed import predict_sizes
from loratory.engine.export.contract import ExportRecord
from loratory.engine.export.kinds import KINDS
from loratory.engine.models.source import find_model
from loratory.engine.paths import LoratoryHome
from loratory.ui.backend.run_reader import RunSnapshot
from loratory.ui.components import HIDDEN, ONCE, QUICK, Updates, script, shown_as_message, visible_if
from loratory.ui.form import component_of_field
from loratory.ui.page import Page
from loratory.ui.views.html import copyable, error_box, notices, size, with_code
from loratory.ui.views.run_details import render_precisions

ADAPTER = KINDS["adapter"].title
HUB, SCRIPT, EXACT, YAML, SERVER = "Hub", "Script", "Exact script", "YAML", "Check a server"
TEXTS = (SCRIPT, YAML)  # which are shown and downloaded
FORMS = (*(kind.title for kind in KINDS.values()), HUB, SCRIPT, EXACT, YAML, SERVER)
FOLDERS = {kind.title: kind for kind in KINDS.values()}  # which are written to a folder

_ABOUT = {
    **{kind.title: kind.about for kind in KINDS.values()},
    HUB: "A repository on the Hugging Face Hub with model card, private by default. It uses the token from HF_TOKEN or "
    "`hf auth login`; it is never stored here.",
    SCRIPT: "One Python file on plain transformers, peft, trl and datasets, in the shape of the usual tutorials. Its head lists "
    "what differs from the run.",
    EXACT: "A folder with train.py and the run's tokenized rows in their order. It repeats the losses of the run without "
    "Loratory.",
    YAML: "The complete configuration of the run, for `loratory train`.",
    SERVER: "Ollama, llama.cpp, vLLM or another OpenAI-compatible server answers held-out prompts, and the run's model reads the "
    "answers: the same, or what differs and how to correct it. For a server with a key, there is `loratory check`.",
}


class ExportForms:
    """Lays out the settings of every format; in a lab, a push needs the person's own token."""

    def __init__(self, *, asks_token: bool = False) -> None:
        fields, push = ExportConfig.model_fields, PushConfig.model_fields
        self.about = gr.HTML(f'<p class="lead">{_ABOUT[ADAPTER]}</p>', elem_id="export-about")
        with gr.Column(elem_id="export-folder-form") as self.to_folder:
            self.folder = gr.Textbox(
                label="Folder", info="A new folder. A bare name is created in Loratory's exports folder.", max_lines=1,
                elem_id="export-folder",
            )  # fmt: skip
        ids = {
            "dtype": "export-dtype",
            "gguf_type": "export-gguf-type",
            "compression": "export-compression",
            "max_shard_gb": "export-shard",
        }
        with gr.Row(visible=False, elem_id="export-precision") as self.of_kind:
            self.kind_settings = {
                name: component_of_field(
                    fields[name],
                    min_width=300 if name in ids and name != "max_shard_gb" else 160,
                    elem_id=ids.get(name),
                )
                for name in (*ids, "keep_merged")
            }
        self.sizes = gr.HTML(visible=False, elem_id="export-sizes")
        with gr.Column(visible=False, elem_id="export-hub") as self.hub:
            with gr.Row():
                self.repository = gr.Textbox(
                    label="Repository", info="owner/name, or a name in your own account.",
                    placeholder="me/support-lora", max_lines=1, min_width=240, elem_id="export-repository",
                )  # fmt: skip
                hub_kind = component_of_field(push["kind"], min_width=240, elem_id="export-hub-kind")
            private = component_of_field(push["private"], elem_id="export-private")
            self.token = gr.Textbox(
                label="Your Hugging Face token", info="Needs write access. Used for this push and not stored.",
                type="password", max_lines=1, visible=asks_token, elem_id="export-token",
            )  # fmt: skip
        self.server = {
            name: component_of_field(
                ServerCheckConfig.model_fields[name], visible=False, elem_id=f"export-server-{name}"
            )
            for name in ("url", "model")
        }
        self.verify = component_of_field(fields["verify"], elem_id="export-verify")
        # In the order of `settings_of`.
        self.settings = {
            **self.kind_settings, "kind": hub_kind, "private": private, "verify": self.verify, **self.server,
        }  # fmt: skip
        self.panels = [
            self.about, self.to_folder, self.of_kind, *self.kind_settings.values(), self.hub, self.verify, self.sizes,
            *self.server.values(),
        ]  # fmt: skip

    def updates(self, form: str, reason: str, sizes: str = "") -> Updates:
        """Show the settings of a format and its file sizes, or why it is not available."""
        about = f'<p class="lead">{with_code(_ABOUT.get(form, ""))}</p>{notices([reason] if reason else [])}'
        kind = FOLDERS.get(form)
        settings = kind.settings if kind is not None else ()
        visible = {
            self.to_folder: kind is not None or form == EXACT,
            self.of_kind: bool(settings),
            **{component: name in settings for name, component in self.kind_settings.items()},
            self.hub: form == HUB,
            **dict.fromkeys(self.server.values(), form == SERVER),
            self.verify: kind is not None or form == HUB,
        }
        return {
            self.about: about,
            self.sizes: gr.update(value=sizes, visible=bool(sizes) and not reason),
            **{panel: visible_if(is_used and not reason) for panel, is_used in visible.items()},
        }

    def settings_of(self, form: str, values: Sequence[Any]) -> dict[str, Any]:
        """Return the settings of the format, still untrusted."""
        by_name = {name: value for name, value in zip(self.settings, values, strict=True) if value is not None}
        if form == HUB:
            names: Sequence[str] = ("kind", "private", "verify")
        elif form == SERVER:
            names = tuple(self.server)
        else:
            kind = FOLDERS.get(form, KINDS["adapter"])
            by_name["kind"] = kind.name
            names = ("kind", *kind.settings, "verify")
        return {name: by_name[name] for name in names if name in by_name}


def config_of(snapshot: RunSnapshot) -> RunConfig:
    """Return the configuration of a run.

    Raises:
        RunError: If it cannot be read.
    """
    if snapshot.config is None:
        raise RunError("This run's config.yaml cannot be read.", "Restore it from a copy.")
    return snapshot.config


def why_not(form: str, config: RunConfig | None) -> str:
    """Return why a run cannot be exported in a format; empty if it can."""
    kind = FOLDERS.get(form)
    reason = kind.why_not(config.adapter.traits) if kind is not None and config is not None else ""
    return f"{reason} {kind.instead}" if kind is not None and reason else ""


def precision_outlook(form: str, config: RunConfig, records: Sequence[ExportRecord], home: LoratoryHome) -> str:
    """Return which program is missing, and the table of precisions if the base model is on disk; empty of other formats."""
    kind = FOLDERS.get(form)
    if kind is None or not kind.precision:
        return ""
    missing, sizes = [], ""
    for check in kind.needs:
        try:
            check(ExportConfig(gguf_type="q4_k_m"), None)
        except ModelError as error:
            missing.append(f"{error.what} {error.fix}")
    with contextlib.suppress(EngineError):
        folder = find_model(config.model, home)
        sizes = render_precisions(predict_sizes(folder, config.model.id), records) if folder is not None else ""
    return notices(missing) + sizes


class ArchivePart:
    """Lays out two buttons: make a .zip, then download it."""

    def __init__(self, page: Page) -> None:
        self.page = page
        with gr.Row(visible=False, elem_id="export-archive") as self.panel:
            self.make = gr.Button("Make a .zip", scale=0, min_width=160, elem_id="make-zip")
            self.download = gr.DownloadButton("Download", visible=False, scale=0, min_width=190, elem_id="download-zip")

    def wire(self, inputs: Sequence[Any], find: Callable[..., Path]) -> None:
        """Connect the events; `find` returns the folder for the values of `inputs`."""

        def archive(*values: Any) -> Any:
            folder = find(*values)
            path = self.page.services.transfers.make_archive(folder, folder.name)
            label = f"Download {path.name} ({size(path.stat().st_size)})"
            return gr.update(value=str(path), label=label, visible=True)

        busy = gr.update(value="Making it …", interactive=False)
        begin_event = self.make.click(lambda: (busy, HIDDEN), None, [self.make, self.download], **QUICK)
        archive_event = begin_event.then(shown_as_message(archive), list(inputs), self.download, **ONCE)
        archive_event.then(lambda: gr.update(value="Make a .zip", interactive=True), None, self.make, **QUICK)


class TextPart:
    """Lays out a run's script or YAML, to read, copy and download."""

    def __init__(self, page: Page) -> None:
        self.page = page
        with gr.Column(visible=False, elem_id="export-text") as self.panel:
            self.download = gr.DownloadButton(
                "Download", visible=False, variant="primary", scale=0, min_width=190, elem_id="download-text"
            )
            self.text = gr.HTML(js_on_load=script("copy"), elem_id="export-text-shown")

    def updates(self, form: str, snapshot: RunSnapshot) -> Updates:
        """Return a run's text with its download, or the error."""
        try:
            config = config_of(snapshot)
            name = "config.yaml" if form == YAML else "train.py"
            text = config_to_yaml(config) if form == YAML else self._script(snapshot, config)
            path = self._file(name, text, snapshot.run.id)
        except EngineError as error:
            return {self.text: error_box(error), self.download: HIDDEN}
        download = gr.update(value=str(path), label=f"Download {name}", visible=True)
        return {self.text: copyable(text, name), self.download: download}

    def _script(self, snapshot: RunSnapshot, config: RunConfig) -> str:
        # Imports the readers of all data formats: it would double our part of the start-up time.
        from loratory.engine.export.script.write import gather_script_facts, write_short_script

        services = self.page.services
        rows = services.inspector.row_form(config.dataset)
        return write_short_script(gather_script_facts(config, services.home, snapshot.run.folder), rows)

    def _file(self, name: str, text: str, run_id: str) -> Path:
        # The page's own cache is served directly and cleaned up.
        folder = Path(self.download.GRADIO_CACHE) / hashlib.sha256(f"{run_id}{text}".encode()).hexdigest()
        with explain_os_errors(f"{name} cannot be written", "Free some space."):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            path = folder / name
            path.write_text(text, encoding="utf-8")
        return path
