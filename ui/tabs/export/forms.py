"""The formats of an export, and the settings of each."""

from collections.abc import Sequence
from html import escape
from typing import Any, NamedTuple

import gradio as gr

from engine.config.results import ExportConfig, PushConfig
from engine.config.run import RunConfig
from engine.export.kinds import KINDS
from ui.components import Updates, visible_if
from ui.form import component_of_field

ADAPTER, MERGED, GGUF = (KINDS[name].title for name in ("adapter", "merged", "gguf"))
HUB, SCRIPT, SHORT, YAML = "Hub", "Script", "Short script", "YAML"
TEXTS = (SCRIPT, SHORT, YAML)  # which are shown and downloaded
FORMS = (*(kind.title for kind in KINDS.values()), HUB, *TEXTS)
FOLDERS = {kind.title: kind for kind in KINDS.values()}  # which are written to a folder

_ABOUT = {
    **{kind.title: kind.about for kind in KINDS.values()},
    HUB: "A repository on the Hugging Face Hub with model card, private by default. The token is that of HF_TOKEN or "
    "`hf auth login`; it is never stored here.",
    SCRIPT: "One Python file on plain transformers, peft, trl and datasets that trains like the run.",
    SHORT: "The same in the shape of the usual tutorials, in at most 70 lines. It names what it leaves out; its losses are not "
    "exactly the run's.",
    YAML: "The complete configuration of the run, for `loratory train`.",
}


class Wanted(NamedTuple):
    """What the form holds; still a browser's values."""

    folder: str
    repository: str
    settings: dict[str, Any]


class ExportForms:
    """Lays out the settings of every format."""

    def __init__(self) -> None:
        fields, push = ExportConfig.model_fields, PushConfig.model_fields
        self.about = gr.HTML(f'<p class="lead">{_ABOUT[ADAPTER]}</p>', elem_id="export-about")
        with gr.Column(elem_id="export-folder-form") as self.to_folder:
            self.folder = gr.Textbox(
                label="Folder", info="A new folder. A name alone is put among Loratory's exports.", max_lines=1,
                elem_id="export-folder",
            )  # fmt: skip
        with gr.Row(visible=False, elem_id="export-merged") as self.merged:
            self.dtype = component_of_field(fields["dtype"], min_width=300, elem_id="export-dtype")
            self.shard = component_of_field(fields["max_shard_gb"], min_width=160, elem_id="export-shard")
        with gr.Row(visible=False, elem_id="export-gguf") as self.gguf:
            self.gguf_type = component_of_field(fields["gguf_type"], min_width=300, elem_id="export-gguf-type")
            self.keep_merged = component_of_field(fields["keep_merged"], min_width=160)
        with gr.Column(visible=False, elem_id="export-hub") as self.hub:
            with gr.Row():
                self.repository = gr.Textbox(
                    label="Repository", info="owner/name, or a name alone for your own account.",
                    placeholder="me/support-lora", max_lines=1, min_width=240, elem_id="export-repository",
                )  # fmt: skip
                self.hub_kind = component_of_field(push["kind"], min_width=240, elem_id="export-hub-kind")
            self.private = component_of_field(push["private"], elem_id="export-private")
        self.verify = component_of_field(fields["verify"], elem_id="export-verify")

    @property
    def inputs(self) -> list[Any]:
        """In the order in which `read` takes them."""
        return [
            self.folder, self.dtype, self.shard, self.gguf_type, self.keep_merged, self.repository, self.hub_kind,
            self.private, self.verify,
        ]  # fmt: skip

    @property
    def panels(self) -> list[Any]:
        """What `updates` changes."""
        return [self.about, self.to_folder, self.merged, self.gguf, self.hub, self.verify]

    def updates(self, form: str, reason: str) -> Updates:
        """Show the settings of a format; where it is not available, the reason alone."""
        about = f'<p class="lead">{escape(_ABOUT.get(form, ""))}</p>'
        if reason:
            about += f'<p class="notice">{escape(reason)}</p>'
        kind = FOLDERS.get(form)
        settings = kind.settings if kind is not None else ()
        visible = {
            self.to_folder: kind is not None,
            self.merged: "dtype" in settings,
            self.gguf: "gguf_type" in settings,
            self.hub: form == HUB,
            self.verify: kind is not None or form == HUB,
        }
        return {self.about: about, **{panel: visible_if(one and not reason) for panel, one in visible.items()}}

    @staticmethod
    def read(form: str, values: Sequence[Any]) -> Wanted:
        """Return the settings that belong to the format."""
        folder, dtype, shard, gguf_type, keep_merged, repository, hub_kind, private, verify = values
        known = {"dtype": dtype, "max_shard_gb": shard, "gguf_type": gguf_type, "keep_merged": bool(keep_merged)}
        if form == HUB:
            settings = {"kind": hub_kind, "private": bool(private)}
        else:
            kind = FOLDERS.get(form, KINDS["adapter"])
            settings = {"kind": kind.name, **{name: known[name] for name in kind.settings}}
        settings["verify"] = bool(verify)
        given = {name: value for name, value in settings.items() if value is not None}
        return Wanted(folder or "", (repository or "").strip(), given)


def why_not(form: str, config: RunConfig | None) -> str:
    """Return why a run cannot be exported in a format; empty where it can."""
    kind = FOLDERS.get(form)
    reason = kind.why_not(config.adapter.traits) if kind is not None and config is not None else ""
    return f"{reason} {kind.instead}" if kind is not None and reason else ""
