"""Gated or private models and datasets in a lab, downloaded with the user's own token for them alone."""

from typing import Any

import gradio as gr
from pydantic import SecretStr

from loratory.engine.accounts.audit import AuditKind
from loratory.engine.accounts.people import Action, require, require_token
from loratory.engine.errors import EngineError, ModelAccessError
from loratory.engine.models.source import is_hub_id
from loratory.engine.private_hub import PrivateCopy
from loratory.ui.backend.models import DOWNLOAD, OwnDownloads
from loratory.ui.components import QUICK, Updates, pick_list, picked_value
from loratory.ui.page import Page
from loratory.ui.polls import JobPanel
from loratory.ui.views.html import error_box, small
from loratory.ui.views.model import render_own

_REALLY = "really:"
_LOGGED: dict[str, AuditKind] = {"model": "model downloaded", "dataset": "dataset downloaded"}
_LEADS = {
    "model": "Accept the model's terms on its page at the Hub first. It is stored in your own folder, for you alone.",
    "dataset": "Accept the dataset's terms on its page at the Hub first. Its data files go to your uploads; its scripts are not run.",
}


class OwnPart:
    """Lays out the downloads of one kind; `wire` connects them. Its `arrival` names what has just arrived."""

    def __init__(self, page: Page, own: OwnDownloads) -> None:
        self.page, self._own = page, own
        name = f"own-{own.kind}"
        with gr.Accordion(f"Gated or private {own.kind}", open=False, elem_id=f"{name}s") as self.panel:
            gr.HTML(small(_LEADS[own.kind]))
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
            self.job = JobPanel(
                own.downloading, "Download", "Download stopped. Downloaded files are kept.", name=name,
                start_id="download",
            )  # fmt: skip
            self.list = pick_list(self._render_list(""), elem_id=f"{name}-list")
        self.arrival = gr.State("")  # to be chosen on the page; empty for nothing

    def wire(self) -> Any:
        """Connect the events; return the one that fires at the end of a download."""
        outputs = [self.arrival, self.list, *self.job.outputs]
        self.job.start_by(self.download, [self.model, self.revision, self.token], outputs, secret=self.token)
        self.job.stop.click(lambda: self.job.end(DOWNLOAD), None, self.job.outputs, **QUICK)
        self.list.click(self.remove, None, [self.list, self.job.status], **QUICK)
        return self.job.changed(self.show_end, None, outputs, **QUICK)

    def offer(self, model_id: str, error: Exception | None) -> Updates:
        """Open the part with the model filled in if the Hub refused it without a login."""
        if not isinstance(error, ModelAccessError) or not is_hub_id(model_id):
            return {}
        return {self.panel: gr.update(open=True), self.model: model_id}

    def download(self, hub_id: str | None, revision: str | None, token: str | None) -> Updates:
        """Start a download."""
        require(self.page.services.person, Action.USE_OWN_DATA)
        secret, name = SecretStr(require_token(token or "", "read access")), (hub_id or "").strip()
        self._own.start(name, (revision or "").strip() or None, secret)
        self.page.services.log(_LOGGED[self._own.kind], name)
        # The end is shown by its own event, however soon it comes.
        return {**self.job.follow(DOWNLOAD), self.job.poll: f"\n{DOWNLOAD}", self.arrival: ""}

    def show_end(self) -> Updates:
        """Return what has arrived, once the download has ended."""
        updates, work = self.job.follow(DOWNLOAD), self._own.downloading.find(DOWNLOAD)
        if work is None or work.is_under_way:
            return updates
        updates |= {self.job.poll: "", self.list: self._render_list("")}
        if work.result is None:
            return updates
        note, arrival = self._describe(work.result)
        return {**updates, self.job.status: small(note, role="status"), self.arrival: arrival}

    def remove(self, event: gr.EventData) -> Updates:
        """Ask at the first click, remove at the second."""
        pick = picked_value(event)
        if not pick.startswith(_REALLY):
            return {self.list: self._render_list(pick), self.job.status: ""}
        problem = ""
        try:
            self._own.remove(pick.removeprefix(_REALLY))
        except EngineError as error:
            problem = error_box(error)
        return {self.list: self._render_list(""), self.job.status: problem}

    def _render_list(self, asked_id: str) -> str:
        return render_own(f"{self._own.kind}s", self._own.list(), asked_id)

    def _describe(self, result: PrivateCopy) -> tuple[str, str]:
        """Return the message about what has arrived, and what to choose on the page."""
        if self._own.kind == "dataset":
            return f"{result.hub_id} is here, in {result.folder}.", str(result.folder)
        if result.revision is None:
            return f"{result.hub_id} is downloaded. Your runs, chats and exports can use it.", result.hub_id
        return f"{result.hub_id} is here. Choose it as “Other model”, and {result.revision} under “Advanced”.", ""
