"""Gated or private models in a lab: downloaded with a person's own token, for them alone."""

from typing import Any

import gradio as gr
from pydantic import SecretStr

from engine.accounts.people import Action, require
from engine.errors import EngineError, ModelAccessError, ModelError
from engine.models.own import hub_id_of
from engine.models.source import is_hub_id
from ui.backend.dataset_checks import model_of
from ui.components import QUICK, SLOW, UNCHANGED, Updates, live_html, pick_list, picked, poll, poll_answer
from ui.page import Page
from ui.views.html import error_box, small, work_status
from ui.views.model import render_own_models

_STOPPED = "The download was stopped. What has arrived is not fetched again."
_REALLY = "really:"
_DOWNLOADING = "downloading"


class OwnModelsPart:
    """Lays out the part; `wire` connects it. Its `wanted` names the model that has just arrived."""

    def __init__(self, page: Page) -> None:
        self._page = page
        own = page.services.own_models
        assert own is not None
        self._own = own
        with gr.Accordion("Gated or private model", open=False, elem_id="own-models") as self.panel:
            gr.HTML(
                small(
                    "Accept the model's terms on its page at the Hub first. It goes to your own folder, and only you use it."
                )
            )
            with gr.Row():
                self.model = gr.Textbox(
                    label="Model", info="A Hub id: owner/name.", max_lines=1, min_width=240, elem_id="own-model"
                )
                self.revision = gr.Textbox(
                    label="Revision", info="Empty takes the newest.", max_lines=1, min_width=160,
                    elem_id="own-model-revision",
                )  # fmt: skip
                self.token = gr.Textbox(
                    label="Your Hugging Face token", info="With read access. Not stored.",
                    type="password", max_lines=1, min_width=240, elem_id="own-model-token",
                )  # fmt: skip
            with gr.Row():
                self.start = gr.Button(
                    "Download", variant="primary", scale=0, min_width=150, elem_id="own-model-download"
                )
                self.stop = gr.Button("Stop", scale=0, min_width=100, visible=False, elem_id="own-model-stop")
            self.status = live_html(elem_id="own-model-status")
            self.list = pick_list(render_own_models(own.list(), ""), elem_id="own-model-list")
            self.poll = poll(self._news, 0.5, elem_id="own-model-live")
        self.wanted = gr.State("")
        self._shown = [self.status, self.start, self.stop, self.list, self.poll]

    def wire(self) -> Any:
        """Connect the events; returns the one that fires when a model has arrived, or cannot."""
        started = self.start.click(
            self._download, [self.model, self.revision, self.token], self._shown, trigger_mode="once", **SLOW
        )
        started.then(lambda: "", None, self.token, **QUICK)
        self.stop.click(self._stop, None, self.status, **QUICK)
        self.list.click(self._remove, None, [self.list, self.status], **QUICK)
        return self.poll.submit(self._ended, None, [self.wanted, *self._shown], **QUICK)

    def offer(self, wanted: str, error: Exception | None) -> Updates:
        """Open the part, with the model filled in, where the Hub refused it to a server without a login."""
        if not isinstance(error, ModelAccessError) or not is_hub_id(wanted):
            return {}
        return {self.panel: gr.update(open=True), self.model: wanted}

    def _download(self, model_id: str | None, revision: str | None, token: str | None) -> Updates:
        try:
            require(self._page.services.person, Action.USE_OWN_DATA)
            model = model_of({"model": {"id": (model_id or "").strip(), "revision": (revision or "").strip() or None}})
            if model is None:
                raise ModelError("No model.", "Type its id on the Hub, such as owner/name.")
            if not (token or "").strip():
                raise ModelError("No token.", "Make one with read access at https://huggingface.co/settings/tokens.")
            hub_id = hub_id_of(model)
            self._page.services.log("model downloaded", hub_id)
            work = self._own.start(model, SecretStr((token or "").strip()))
        except EngineError as error:
            return {self.status: error_box(error)}
        return {
            self.status: work_status(work, _STOPPED),
            self.start: gr.update(interactive=False),
            self.stop: gr.update(visible=True),
            self.poll: _DOWNLOADING,
        }

    def _news(self, _question: str, seen: str) -> str | None:
        work = self._own.work
        now = work.stamp if work is not None else ""
        has_ended = work is None or not work.is_under_way
        places = {str(self.status.elem_id): work_status(work, _STOPPED)}
        return poll_answer(now, places, submit=has_ended) if now != seen else None

    def _ended(self) -> Updates:
        work = self._own.work
        if work is not None and work.is_under_way:
            return UNCHANGED
        arrived = work.result if work is not None else None
        note, wanted = "", ""
        if arrived is not None and arrived.revision is None:
            note, wanted = f"{arrived.hub_id} is here. Your runs, chats and exports find it.", arrived.hub_id
        elif arrived is not None:
            note = f"{arrived.hub_id} is here. Choose it as “Other model”, and {arrived.revision} under “Advanced”."
        return {
            self.wanted: wanted,
            self.status: work_status(work, _STOPPED) or small(note, role="status"),
            self.start: gr.update(interactive=True),
            self.stop: gr.update(visible=False),
            self.list: render_own_models(self._own.list(), ""),
            self.poll: "",
        }

    def _stop(self) -> str:
        self._own.stop()
        return work_status(self._own.work, _STOPPED)

    def _remove(self, event: gr.EventData) -> Updates:
        """Ask once more at the first click, and remove at the second."""
        pick = picked(event)
        hub_id = pick.removeprefix(_REALLY)
        status = ""
        if pick.startswith(_REALLY):
            try:
                self._own.remove(hub_id)
            except EngineError as error:
                status = error_box(error)
        asked = "" if pick.startswith(_REALLY) else hub_id
        return {self.list: render_own_models(self._own.list(), asked), self.status: status}
