"""Evaluation in the Chat tab: base and tuned on the held-out set, in the background and across runs; the person's votes."""

from collections.abc import Sequence
from typing import Any

import gradio as gr
from gradio.events import Dependency

from loratory.engine.config.results import EvaluationConfig, TestSet
from loratory.engine.config.run import SET_PREFIX
from loratory.engine.data.workshop.sets import set_names
from loratory.engine.errors import EngineError
from loratory.engine.evaluation.votes import Votes, pairs_of_votes
from loratory.engine.scoring.base import Scorer
from loratory.engine.scoring.registry import SCORERS
from loratory.ui import components as ui
from loratory.ui.backend.results import Evaluations
from loratory.ui.backend.run_reader import FINAL
from loratory.ui.form import component_of_field, number_of, section_by_titles
from loratory.ui.gradio_internals import Dropdown
from loratory.ui.page import Page
from loratory.ui.polls import JobPanel
from loratory.ui.tabs.chat_choice import ChatChoice, checkpoint_of
from loratory.ui.tabs.data import with_source
from loratory.ui.tabs.run_place import chosen_place
from loratory.ui.views import evaluation as view
from loratory.ui.views.html import ListPage, error_box, plural, small
from loratory.ui.views.row_losses import ROW_PREFIX, SOURCE_PREFIX, render_row_losses, render_sources

_SHOW_ROW = (
    "() => document.querySelector('.row-tokens:not(:empty), #measure-answers')?.scrollIntoView({block: 'nearest'})"
)
_SETTINGS = ("max_rows", "answered_rows", "max_new_tokens", "general_text")


class EvaluatePart:
    """Lays out the evaluation; `wire` connects it."""

    def __init__(self, page: Page, choice: ChatChoice) -> None:
        self.page = page
        self._choice = choice
        self._evaluations = Evaluations(page.services.runs, page.reader)
        gr.HTML(
            '<p class="lead">Loss and perplexity on the held-out set, then on general text, then answers to some of its rows. A loaded model is unloaded '
            "first.</p>"
        )
        with gr.Row(equal_height=True, elem_id="measure-settings"):
            self._settings = [
                component_of_field(EvaluationConfig.model_fields[name], min_width=180, elem_id=f"measure-{name}")
                for name in _SETTINGS
            ]
        with gr.Row(elem_id="measure-test"):
            self.test = gr.Textbox(
                label="Test set",
                info="A file, Hub id or set:NAME with prompts and answers. Empty takes none.",
                max_lines=1,
            )
            choices = [(kind.label, name) for name, kind in SCORERS.items() if not _required(kind)]
            self.scorers = Dropdown(
                choices, value=["number"], multiselect=True, label="Scorers", info="How its answers are scored."
            )
        self._settings += [self.test, self.scorers]
        self.job = JobPanel(
            page.services.results.measuring, "Measure", "Stopped; measured losses are kept.", name="measure", min_width=170,
            seconds=1.0, watch=self._evaluations.stamp,
        )  # fmt: skip
        self.result = ui.pick_list(view.NOT_MEASURED, more=("row_tokens",), elem_id="measure-result")
        self.rows = ui.pick_list(elem_id="measure-answers")
        self.across = ui.pick_list(elem_id="measure-across")
        self.number = gr.State(0)  # of the page of answered rows
        self._target = [self._choice.run, self._choice.checkpoint]
        self._outputs = [self.number, self.result, self.rows, self.across, *self.job.outputs]

    def wire(self, in_sight: list[Any], chosen: Dependency) -> None:
        """Connect the events after which it may be in sight, and that of choosing a run."""
        selection = [*self._target, self.number]
        inputs = [*selection, self._choice.where, *self._settings]
        for event in (*in_sight, self.job.changed):
            event(self.show, selection, self._outputs, **ui.QUICK)
        for event in (chosen.then, self._choice.checkpoint.input):
            event(self.show, self._target, self._outputs, **ui.QUICK)
        open_row = self.job.shown_in_status(self.open_row)
        self.rows.click(open_row, inputs, self._outputs, **ui.QUICK)
        self.job.start_by(self.start, inputs, self._outputs)
        self.job.stop.click(self.job.end, self._choice.run, self.job.outputs, **ui.QUICK)
        self.result.click(open_row, inputs, self._outputs, **ui.QUICK).then(None, None, None, js=_SHOW_ROW, **ui.QUICK)
        pick_event = self.across.click(self.pick, None, [*self._choice.outputs, self.number], **ui.QUICK)
        pick_event.then(self.show, selection, self._outputs, **ui.QUICK)

    def show(self, run_id: str, checkpoint: str | None, number: int = 0) -> ui.Updates:
        """Return the evaluation's progress and result, with a page of its answered rows."""
        is_run, state = self.page.reader.exists(run_id), checkpoint_of(checkpoint)
        updates = self.job.follow(run_id if is_run else None)
        result = self._evaluations.read(run_id, state) if is_run else None
        page = ListPage.at(number, len(result.answered_rows) if result is not None else 0, view.ROWS_PER_PAGE)
        if result is not None:
            html = view.render_evaluation(result) + render_row_losses(result)
        elif is_run:
            work = self.page.services.results.measuring.find(run_id)
            html = "" if work is not None and work.is_under_way else view.NOT_MEASURED
        else:
            html = view.NO_RESULT
        if is_run:
            of_all = self._evaluations.read(run_id, state, all_rows=True)
            html += render_sources(set_names(self.page.services.home)) + (render_row_losses(of_all) if of_all else "")
        updates[self.job.start]["value"] = "Measure again" if result is not None else "Measure"
        return {
            **updates,
            self.number: page.number,
            self.result: html,
            self.rows: view.render_answered(result, page) if result is not None else "",
            self.across: view.render_across(self._evaluations.across(), f"{run_id}/{state or FINAL}" if is_run else ""),
        }

    def start(
        self, run_id: str, checkpoint: str | None, number: int, where: str, *settings: Any, source: str | None = None
    ) -> ui.Updates:
        """Start an evaluation; with a source, of all of its rows, without answers."""
        run = self._choice.run_of(run_id)
        only_losses = {} if source is None else {"answered_rows": 0, "general_text": False, "source": source}
        *own, test, scorers = settings
        values = dict(zip(_SETTINGS, map(number_of, own), strict=True)) | only_losses
        test_sets = _test_sets(str(test or "").strip(), scorers) if source is None else ()
        config = section_by_titles(EvaluationConfig, values)
        results, place = self.page.services.results, chosen_place(where)
        results.measuring.require_none(run.id)
        self.page.services.free_device(place)
        results.measure(run, checkpoint_of(checkpoint), config, place, test_sets)
        return self.show(run_id, checkpoint, number)

    def open_row(
        self, event: gr.EventData, run_id: str, checkpoint: str | None, number: int, *values: Any
    ) -> ui.Updates:
        """Show the page with the answers to the picked row or of that number, or measure all rows of what was picked."""
        pick, is_run = ui.picked_value(event), self.page.reader.exists(run_id)
        if pick.startswith(SOURCE_PREFIX):
            name = pick.removeprefix(SOURCE_PREFIX)  # looked up among the sets
            return self.start(run_id, checkpoint, number, *values, source=f"{SET_PREFIX}{name}" if name else "")
        result = self._evaluations.read(run_id, checkpoint_of(checkpoint)) if is_run else None
        rows = [f"{ROW_PREFIX}{row.row}" for row in result.answered_rows] if result is not None else []
        page = rows.index(pick) // view.ROWS_PER_PAGE if pick in rows else ui.picked_page(event, number)
        return self.show(run_id, checkpoint, page)

    def pick(self, event: gr.EventData) -> ui.Updates:
        """Choose a run and checkpoint of the table across runs."""
        run_id, _, checkpoint = ui.picked_value(event).partition("/")
        if not self.page.reader.exists(run_id):
            return ui.UNCHANGED
        updates = self._choice.choose(run_id)
        states = updates[self._choice.checkpoint]
        if checkpoint in [value for _, value in states["choices"]]:
            updates[self._choice.checkpoint] = {**states, "value": checkpoint}
        return {self._choice.run: run_id, **updates, self.number: 0}


def _required(kind: type[Scorer]) -> bool:
    """Return whether a scorer has settings without a default, which only a configuration can give."""
    return any(field.is_required() for name, field in kind.model_fields.items() if name != "scorer")


def _test_sets(source: str, scorers: Sequence[str]) -> tuple[TestSet, ...]:
    values = {"source": source, "scorers": [{"scorer": name} for name in scorers]}
    return (section_by_titles(TestSet, values),) if source else ()


_DELETE, _REALLY = "delete:", "really:"


class VotesPart:
    """Lays out the votes of the person; `wire` connects them."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self._votes = Votes(page.services.home)
        gr.HTML(
            '<p class="lead">A vote records which of two answers to the same prompt is better. Preference tuning (DPO, ORPO) '
            "trains on such pairs.</p>"
        )
        self.counts = gr.HTML(elem_id="votes-counts")
        with gr.Column(visible=False, elem_id="votes") as self.panel:
            self.with_cut_off = gr.Checkbox(
                label="Include cut-off answers",
                info="Pairs whose better answer hit the token limit train the model to stop there.",
                elem_id="votes-cut-off",
            )
            with gr.Row(elem_id="votes-buttons"):
                self.use_button = gr.Button(
                    "Use as dataset", variant="primary", scale=0, min_width=170, elem_id="votes-use"
                )
                self.delete_all = gr.Button("Delete all", scale=0, min_width=110, elem_id="votes-delete-all")
            self.confirm = ui.Confirmation(
                "Delete votes", "Keep votes", ("votes-confirm", "votes-really", "votes-keep")
            )
        self.status = gr.HTML(elem_id="votes-status")
        self.list = ui.pick_list(elem_id="votes-list")
        self.number = gr.State(0)  # of the page
        self.dataset_change = gr.State({})
        self._outputs = [self.counts, self.panel, self.use_button, self.list, self.number, self.confirm.panel]

    def wire(self, mode_event: Any) -> None:
        """Connect the events; the votes are read after each `mode_event`."""
        page, selection = self.page, [self.with_cut_off, self.number]
        for event in (mode_event.then, self.with_cut_off.input):
            event(self.show, selection, self._outputs, **ui.QUICK)
        self.list.click(self.pick, selection, [*self._outputs, self.status], **ui.QUICK)
        self.confirm.wire(self.delete_all.click, self._deletion_question, self.number)
        self.confirm.really.click(self.delete, self.with_cut_off, [*self._outputs, self.status], **ui.QUICK)
        use_outputs = [self.dataset_change, self.status]
        use_event = self.use_button.click(ui.shown_as_message(self.use), self.with_cut_off, use_outputs, **ui.ONCE)
        change_event = page.change_after(use_event, self.dataset_change, undo=True)
        change_event.then(None, None, page.wants_data, js="() => String(Math.random())", **ui.QUICK)
        page.open_tab(use_event, "data")

    def show(self, with_cut_off: bool, number: int = 0, asked_id: str = "") -> ui.Updates:
        """Return the counts and one page of the votes; the one with `asked_id` waits for a confirmation to delete it."""
        votes = self._votes.read()
        pairs = pairs_of_votes(votes, with_cut_off=bool(with_cut_off))
        page = ListPage.at(int(number), len(votes), view.VOTES_PER_PAGE)
        return {
            self.counts: view.render_counts(votes, pairs),
            self.panel: gr.update(visible=bool(votes)),
            self.use_button: gr.update(interactive=bool(pairs.rows)),
            self.list: view.render_votes(votes, page, asked_id),
            self.number: page.number,
            self.confirm.panel: gr.update(visible=False),
        }

    def use(self, with_cut_off: bool) -> ui.Updates:
        """Write the pairs of the votes as a dataset, and choose it."""
        path, pairs = self._votes.snapshot(with_cut_off=bool(with_cut_off))
        status = small(f"In use as {path.name}: {pairs.summary}")
        return {self.dataset_change: with_source(str(path)), self.status: status}

    def pick(self, event: gr.EventData, with_cut_off: bool, number: int) -> ui.Updates:
        """Turn the page, or delete a vote: ask at the first click, delete at the second."""
        pick = ui.picked_value(event)
        if pick.startswith(_REALLY):
            return self.delete(with_cut_off, number, [pick.removeprefix(_REALLY)])
        asked_id = pick.removeprefix(_DELETE) if pick.startswith(_DELETE) else ""
        return {**self.show(with_cut_off, ui.picked_page(event, number), asked_id), self.status: ""}

    def delete(self, with_cut_off: bool, number: int = 0, identifiers: list[str] | None = None) -> ui.Updates:
        """Delete votes; all of them without identifiers."""
        try:
            message = small(f"{plural(self._votes.remove(identifiers), 'vote')} deleted.", role="status")
        except EngineError as error:
            message = error_box(error)
        return {**self.show(with_cut_off, number), self.status: message}

    def _deletion_question(self, _number: int) -> tuple[str, str]:
        count = plural(len(self._votes.read()), "vote")
        return f"Delete {count}?", "Datasets made from them are kept."
