"""My datasets: sets on the Data tab, listed, made, edited and deleted; the inspector reads and changes them."""

import json
from collections.abc import Mapping
from typing import Any

import gradio as gr

from loratory.engine.config.run import SET_PREFIX
from loratory.engine.data.hub import is_on_hub
from loratory.engine.data.source import SourceOptions, path_of
from loratory.engine.data.workshop.sets import delete_set, set_folder
from loratory.engine.data.workshop.table import SetQuestion
from loratory.engine.runs.disk import require_disk_space
from loratory.engine.runs.names import last_part
from loratory.engine.runs.store import set_uses
from loratory.ui.backend.background import as_engine_error
from loratory.ui.backend.dataset_checks import question_of
from loratory.ui.components import script
from loratory.ui.draft import Draft
from loratory.ui.page import Page
from loratory.ui.tabs.data_documents import answer_on_documents
from loratory.ui.views import sets as view
from loratory.ui.views.html import error_box
from loratory.ui.views.rows import render_row


class SetsPart:
    """Lays out the sets: one component, whose script asks. Its `click` chooses a set, `submit` follows a change of one."""

    def __init__(self, page: Page) -> None:
        self.services = page.services

        def query(values: list[Any]) -> str:
            return json.dumps(self.answer(str(values[0])))

        self.html = gr.HTML(
            "{}", elem_id="sets", visible=not page.services.home.is_guest, server_functions=[query],
            html_template=script("sets", "html") + script("documents", "html"),
            js_on_load="".join(map(script, ("sets", "set_row", "documents", "pick"))),
        )  # fmt: skip
        page.on_draft(self.html, render_form)

    def answer(self, text: str) -> dict[str, Any]:
        """Answer a question of the script, which a client can forge; an error is the box that shows it."""
        home = self.services.home
        try:
            question = json.loads(text)
            form, do, name = question.pop("form"), question["do"], str(question.get("name"))
            if do == "documents":
                return answer_on_documents(self.services, question)
            if do == "tokens":
                return {"html": self._render_row(name, question, form)}
            if do == "delete":
                delete_set(set_folder(home, name))
                return {}
            uses = set_uses(self.services.runs) if do in ("list", "question") else []
            if do == "question":
                return {"html": view.render_deletion(name, sorted({run for used, _, run in uses if used == name}))}
            if do == "make":
                question["dataset"], path = form["dataset"], str(form["dataset"]["source"]).strip()
                bytes_ = path_of(path, SourceOptions(home=home).access).stat().st_size
                require_disk_space(home, home.owner, bytes_)
            elif do == "apply":
                require_disk_space(home, home.owner)
            answer = self.services.inspector.sets(SetQuestion.model_validate(question))
            if do == "apply" and (changed := question_of(form)) is not None:
                self.services.checks.forget(changed.dataset)
            if do == "list":
                return {"html": view.render_sets(answer["sets"], uses, form)}
            render = {"log": view.render_log, "hits": view.render_hits}.get(do)
            return {**answer, "html": render(answer)} if render is not None else answer
        except Exception as error:
            return {"error": error_box(as_engine_error(error))}

    def _render_row(self, name: str, question: Mapping[str, Any], form: Mapping[str, Any]) -> str:
        """Return a row with what is typed, as training would read it."""
        source, chosen = f"{SET_PREFIX}{name}", form["dataset"]
        settings = chosen if str(chosen.get("source") or "").partition("@")[0] == source else {}
        check = question_of({**form, "dataset": {**settings, "source": source}})
        if check is None:
            return ""
        check = self.services.tokenizers.answerable(check)
        page = self.services.inspector.preview(
            check.dataset, check.model, check.max_length, first_row=int(question["row"]) - 1, edit=question["record"]
        )
        return render_row(page, as_tokens=True).replace('aria-label="', 'aria-label="Edited: ')


def render_form(draft: Draft) -> str:
    """Return as JSON what the script sends with a question, and the name of the file that can become a set."""
    dataset = dict(draft.mapping.get("dataset", {}))
    source = str(dataset.get("source") or "").strip()
    is_file = bool(source) and not source.startswith(SET_PREFIX) and not is_on_hub(source) and not dataset.get("mix")
    form = {name: dict(draft.mapping.get(name, {})) for name in ("model", "training")}
    return json.dumps({**form, "dataset": dataset, "openable": last_part(source) if is_file else ""}, default=str)
