"""Gated or private models and datasets in a lab, downloaded with the user's own token for them alone."""

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import gradio as gr
from pydantic import SecretStr

from engine.accounts.audit import AuditKind
from engine.accounts.logins import require_token
from engine.accounts.people import Action, require
from engine.errors import EngineError, ModelAccessError
from engine.models.source import is_hub_id
from engine.private_hub import PrivateCopy
from ui.backend.own_models import OwnDownloads
from ui.components import QUICK, SLOW, UNCHANGED, Updates, clear_error_after, live_html, pick_list, picked_value
from ui.page import Page
from ui.polls import poll, poll_answer
from ui.views.html import error_box, small, work_status
from ui.views.model import render_own

_STOPPED = "Download stopped. Downloaded files are kept."
_REALLY = "really:"
_DOWNLOADING = "downloading"


class _Arrival(NamedTuple):
    note: str  # message for the user
    arrival: str  # to choose on the page; empty for none


class _OwnPart(ABC):
    """Lays out the part; `wire` connects it. Its `arrival` names what has just arrived."""

    audit_kind: AuditKind
    lead: str

    def __init__(self, page: Page, own: OwnDownloads) -> None:
        self._page, self._own = page, own
        name = f"own-{own.kind}"
        with gr.Accordion(f"Gated or private {own.kind}", open=False, elem_id=f"{name}s") as self.panel:
            gr.HTML(small(self.lead))
            with gr.Row():
                self.model = gr.Textbox(
                    label=own.kind.capitalize(), info="A Hub id: owner/name.", max_lines=1, min_width=240, elem_id=name
                )
                self.revision = gr.Textbox(
                    label="Revision", info="Empty uses the latest revision.", max_lines=1, min_width=160,
                    elem_id=f"{name}-revision",
                )  # fmt: skip
                self.token = gr.Textbox(
                    label="Your Hugging Face token", info="Needs read access. Not stored.",
                    type="password", max_lines=1, min_width=240, elem_id=f"{name}-token",
                )  # fmt: skip
            with gr.Row():
                self.start = gr.Button(
                    "Download", variant="primary", scale=0, min_width=150, elem_id=f"{name}-download"
                )
                self.stop = gr.Button("Stop", scale=0, min_width=100, visible=False, elem_id=f"{name}-stop")
            self.status = live_html(elem_id=f"{name}-status")
            self.list = pick_list(self._render_list(""), elem_id=f"{name}-list")
            self.poll = poll(self._news, 0.5, elem_id=f"{name}-live")
        self.arrival = gr.State("")
        self._outputs = [self.status, self.start, self.stop, self.list, self.poll]

    def wire(self) -> Any:
        """Connect the events; return the one that fires at the end of a download."""
        start_event = self.start.click(
            self._download, [self.model, self.revision, self.token], self._outputs, trigger_mode="once", **SLOW
        )
        start_event.then(lambda: "", None, self.token, **QUICK)
        clear_error_after(self.status, [self.model, self.revision, self.token])
        self.stop.click(self._stop, None, self.status, **QUICK)
        self.list.click(self._remove, None, [self.list, self.status], **QUICK)
        return self.poll.submit(self._end, None, [self.arrival, *self._outputs], **QUICK)

    @abstractmethod
    def _arrival_of(self, result: PrivateCopy) -> _Arrival:
        """Return what follows the arrival."""

    def _render_list(self, asked_id: str) -> str:
        return render_own(f"{self._own.kind}s", self._own.list(), asked_id)

    def _download(self, hub_id: str | None, revision: str | None, token: str | None) -> Updates:
        try:
            require(self._page.services.person, Action.USE_OWN_DATA)
            secret, name = SecretStr(require_token(token or "", "read access")), (hub_id or "").strip()
            work = self._own.start(name, (revision or "").strip() or None, secret)
            self._page.services.log(self.audit_kind, name)
        except EngineError as error:
            return {self.status: error_box(error)}
        return {
            self.status: work_status(work, _STOPPED),
            self.start: gr.update(interactive=False),
            self.stop: gr.update(visible=True),
            self.poll: _DOWNLOADING,
        }

    def _news(self, _question: str, last_stamp: str) -> str | None:
        work = self._own.work
        now = work.stamp if work is not None else ""
        has_ended = work is None or not work.is_under_way
        places = {str(self.status.elem_id): work_status(work, _STOPPED)}
        return poll_answer(now, places, submit=has_ended) if now != last_stamp else None

    def _end(self) -> Updates:
        work = self._own.work
        if work is not None and work.is_under_way:
            return UNCHANGED
        result = work.result if work is not None else None
        arrival = self._arrival_of(result) if result is not None else _Arrival("", "")
        return {
            self.arrival: arrival.arrival,
            self.status: work_status(work, _STOPPED) or small(arrival.note, role="status"),
            self.start: gr.update(interactive=True),
            self.stop: gr.update(visible=False),
            self.list: self._render_list(""),
            self.poll: "",
        }

    def _stop(self) -> str:
        self._own.stop()
        return work_status(self._own.work, _STOPPED)

    def _remove(self, event: gr.EventData) -> Updates:
        """Ask at the first click, remove at the second."""
        pick = picked_value(event)
        hub_id = pick.removeprefix(_REALLY)
        status = ""
        if pick.startswith(_REALLY):
            try:
                self._own.remove(hub_id)
            except EngineError as error:
                status = error_box(error)
        confirm_id = "" if pick.startswith(_REALLY) else hub_id
        return {self.list: self._render_list(confirm_id), self.status: status}


class OwnModelsPart(_OwnPart):
    """Models, in the Model tab."""

    audit_kind = "model downloaded"
    lead = "Accept the model's terms on its page at the Hub first. It is stored in your own folder, for you alone."

    def offer(self, model_id: str, error: Exception | None) -> Updates:
        """Open the part with the model filled in if the Hub refused it without a login."""
        if not isinstance(error, ModelAccessError) or not is_hub_id(model_id):
            return {}
        return {self.panel: gr.update(open=True), self.model: model_id}

    def _arrival_of(self, result: PrivateCopy) -> _Arrival:
        if result.revision is None:
            return _Arrival(f"{result.hub_id} is downloaded. Your runs, chats and exports can use it.", result.hub_id)
        return _Arrival(
            f"{result.hub_id} is here. Choose it as “Other model”, and {result.revision} under “Advanced”.", ""
        )


class OwnDatasetsPart(_OwnPart):
    """Datasets, in the Data tab."""

    audit_kind = "dataset downloaded"
    lead = "Accept the dataset's terms on its page at the Hub first. Its data files go to your uploads; its scripts are not run."

    def _arrival_of(self, result: PrivateCopy) -> _Arrival:
        return _Arrival(f"{result.hub_id} is here, in {result.folder}.", str(result.folder))
