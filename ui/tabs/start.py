"""The start on the Train tab: a run, or a sweep over some settings; the same draft starts again only if confirmed."""

import contextlib
import functools
import hashlib
import json
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

import gradio as gr
from gradio.events import Dependency

from loratory.engine.config import derived_defaults
from loratory.engine.config.load import setting_names
from loratory.engine.config.objectives import preference_name
from loratory.engine.config.run import RunConfig
from loratory.engine.errors import ConfigError, DatasetError, EngineError, MemoryUnknownError, Problem, RunError
from loratory.engine.memory.estimate import MemoryEstimate, estimate_memory
from loratory.engine.runs.run import Run
from loratory.engine.runs.sweep import keep_alpha_ratio, sweep_configs
from loratory.ui.backend.background import UNEXPECTED, FunctionJob, Work
from loratory.ui.backend.dataset_checks import CheckQuestion
from loratory.ui.components import HIDDEN, LATEST, NOT_SHOWN, ONCE, QUICK, Confirmation, Updates, clear_error_after
from loratory.ui.draft import Draft
from loratory.ui.gradio_internals import changed_by_hand, enclosing_page
from loratory.ui.page import Page
from loratory.ui.views.html import attention, duration, error_box, gib, plural, problem_item, small
from loratory.ui.views.memory import alarms
from loratory.ui.views.sweep import render_sweep_plan

REFUSED = "refused"  # where a start goes that has an error or a question
_NAMED_BY_BROWSER = "(token) => token || crypto.getRandomValues(new Uint32Array(4)).join('-')"
_SWEEP_EXAMPLE = "learning_rate = 1e-4, 2e-4\nr = 8, 16\nseed = 1, 2, 3"
_SWEEP_LEAD = small("Each combination is a run. Several seeds show what is noise. lora_alpha follows r unless listed.")
_MEMORYLESS: Any = {"run": {"name"}, "training": {"learning_rate", "num_train_epochs", "max_steps", "seed"}}
_FORGET = f"() => ['', ({NOT_SHOWN})()]"


class StartPart:
    """Lays out the start, which runs in the background."""

    def __init__(self, page: Page, seconds_of: Callable[[Draft, Sequence[RunConfig]], float | None]) -> None:
        self.page = page
        self._seconds_of = seconds_of  # how long runs take one by one
        self.job = page.start_job
        self.problems = self.job.status
        self.problems.render()
        ids = "confirm-start", "really-start", "do-not-start"
        self.confirm = Confirmation("Start again", "Do not start", ids, variant="primary")
        with gr.Row(elem_id="start-row"):
            shared: dict[str, Any] = {"interactive": False, "scale": 0, "min_width": 190}
            self.start = gr.Button("Start training", variant="primary", elem_id="start", **shared)
            self.reason = gr.HTML(elem_id="start-reason")
        with gr.Accordion("Sweep", open=False, elem_id="sweep-fold"):
            self.axes = gr.Textbox(
                label="Settings and values", placeholder=_SWEEP_EXAMPLE, lines=3, max_lines=8, max_length=2000,
                elem_id="sweep-settings",
            )  # fmt: skip
            self.sweep_plan = gr.HTML(_SWEEP_LEAD, elem_id="sweep-plan")
            self.sweep = gr.Button("Queue sweep", elem_id="sweep-start", **shared)
        self._buttons = [self.start]
        # Identifies a start together with the draft: of this browser, or after "Start again" the run that was there before.
        self.token = page.start_token
        self.open_question = gr.State(("run", ""))  # what it is about: "run" or "sweep", and the run that exists
        self.pending = gr.State("")  # key of the start that this page waits for
        # After a start: the tab, "train" or "runs", and the id of the first run; or `REFUSED`. Changes at each.
        self.goes_to = page.start_goes_to
        page.on_draft(self.start, lambda draft: gr.update(interactive=why_not(draft) is None))
        page.on_draft(self.sweep, lambda draft: gr.update(interactive=draft.config is not None and not draft.problems))
        page.on_draft(self.reason, render_reason)
        self.draft_key = gr.Textbox("", visible=False)  # key of the draft: the error of another one is no longer shown
        page.on_draft(self.draft_key, lambda draft: hashlib.sha256(repr(draft.mapping).encode()).hexdigest())

    def offer(self, button: gr.Button) -> None:
        """Let another button start the run; it must be laid out before `wire`."""
        self._buttons.append(button)

    def wire(self) -> None:
        """Connect the events; `goes_to` changes once a run is queued and chosen."""
        page, components, confirm = self.page, self.page.form.components, self.confirm
        enclosing_page().load(None, self.token, self.token, js=_NAMED_BY_BROWSER, **QUICK)
        outputs = [
            self.problems, page.chosen_run, self.token, self.sweep, self.open_question, self.pending, self.job.poll, self.goes_to,
            confirm.panel, confirm.question, confirm.really, *self._buttons,
        ]  # fmt: skip
        self.draft_key.change(None, None, [self.problems, confirm.panel], js=_FORGET, **QUICK)
        inputs = [self.token, self.pending, page.copied_from, self.axes, *components]
        once = ONCE | QUICK
        starts = [button.click for button in self._buttons]
        gr.on(starts, functools.partial(self.begin, "run"), inputs, outputs, **once)
        self.sweep.click(functools.partial(self.begin, "sweep"), inputs, outputs, **once)
        confirm.really.click(self.begin_agreed, [self.open_question, *inputs], outputs, **once)
        confirm.close_by(confirm.cancel.click)
        confirm.close_by(changed_by_hand(self.axes))  # it is not part of the draft
        clear_error_after(self.problems, [self.axes])
        edits, plan_inputs = [changed_by_hand(self.axes), self.draft_key.change], [self.axes, *components]
        gr.on(edits, self.plan_sweep, plan_inputs, self.sweep_plan, **LATEST)
        self.job.changed(self.show, self.pending, outputs, **QUICK)

    def enable_after(self, event: Dependency) -> None:
        """Enable the buttons again after the event that shows the started run: until then, a click is the same start."""
        event.then(self.enable, self.goes_to, [*self._buttons, self.sweep, self.pending, self.job.poll], **QUICK)

    def enable(self, goes_to: str) -> Updates:
        """Return enabled buttons; a refused start left them enabled, and may have been agreed to since."""
        return {self.pending: gr.skip()} if goes_to.startswith(REFUSED) else self._idle()

    def begin_agreed(self, question: tuple[str, str], token: str, *values: Any) -> Updates:
        """Begin what the question was about."""
        kind, existing_id = question
        token = existing_id or token  # the same for each click on "Start again", which starts one run
        return {self.token: token, **self.begin(kind, token, *values, is_agreed=True)}

    def begin(
        self, kind: str, token: str, pending: str, copied_from: str, axes: str, *values: Any, is_agreed: bool = False
    ) -> Updates:
        """Begin to check the draft and to queue its run; of a "sweep", every combination and a run for each."""
        try:
            draft = self.page.draft(values)
            if (config := draft.config) is None:
                raise ConfigError(draft.problems)
            configs = sweep_of(config, axes) if kind == "sweep" else [config]
        except EngineError as error:
            return self._refuse(error_box(error))
        key = start_key(token, configs)
        work = self.page.starts.find(key)
        if work is not None and (work.is_under_way or pending == key):
            return self._progress(key, work)
        existing = self.page.services.runs.find_by_key(f"{key}/0" if kind == "sweep" else key)
        question = None if is_agreed else self._question(draft, configs, existing)
        if question is not None:
            about = {self.open_question: (kind, existing.id if existing is not None else "")}
            return {**self._refuse(), **self.confirm.open(*question), **about}
        check = self.page.services.checks.find(CheckQuestion.from_config(config))
        options = {
            "copied_from": copied_from if self.page.reader.exists(copied_from) else None,
            "preview": check.report if check is not None else None,
        }
        job = FunctionJob(functools.partial(self._launch, kind, key, configs, options))
        with contextlib.suppress(RunError):  # another request has begun it meanwhile
            self.page.starts.start(key, "A start", job)
        return self.show(key)

    def plan_sweep(self, axes: str, *values: Any) -> str:
        """Return number, time and memory of the runs that were typed, or what is wrong with them."""
        draft = self.page.draft(values) if axes and axes.strip() else None
        if draft is None or draft.config is None:
            return _SWEEP_LEAD
        try:
            configs = sweep_of(draft.config, axes)
        except ConfigError as error:
            return f'<ul class="reason" role="status">{"".join(map(problem_item, error.problems))}</ul>'
        known = draft.rows.known if draft.rows is not None else None
        configs = [derived_defaults.apply_derived_defaults(config, known) for config in configs]
        estimates: dict[str, MemoryEstimate] = {}
        with contextlib.suppress(EngineError):
            if draft.shape is not None and (device := draft.device) is not None:
                distinct = {config.model_dump_json(exclude=_MEMORYLESS): config for config in configs}.values()
                estimates = {each.run.name: estimate_memory(draft.shape, each, device, draft.rows) for each in distinct}
        return render_sweep_plan(len(configs), self._seconds_of(draft, configs), estimates)

    def _launch(
        self,
        kind: str,
        key: str,
        configs: Sequence[RunConfig],
        options: Mapping[str, Any],
        report: Callable[[str], None],
    ) -> Sequence[Run]:
        """Check and queue the runs; rows that changed since the page counted them are counted again."""
        services = self.page.services
        try:
            if kind == "sweep":
                runs: Sequence[Run] = services.launcher.start_all(configs, key, on_progress=report, **options)
            else:
                runs = [services.launcher.start(configs[0], key, on_progress=report, **options)]
        except DatasetError:
            services.checks.forget(configs[0].dataset)
            raise
        for run in runs:
            services.log("run started", run.id)
        return runs

    def _question(self, draft: Draft, configs: Sequence[RunConfig], existing: Run | None) -> tuple[str, str] | None:
        """Return what a person should confirm before a start, as HTML, and the button for it; None where it is clear."""
        if existing is not None:
            row = self.page.reader.summary(existing.id)
            more = f" and {plural(len(configs) - 1, 'more run')}" if len(configs) > 1 else ""
            when = duration(time.time() - row.created)
            return (
                f"You started these settings {when} ago as <b>{escape(row.name)}</b>{more}. Start again?",
                "Start again",
            )
        config = max(configs, key=derived_defaults.learning_rate_factor)
        factor = derived_defaults.learning_rate_factor(config)
        if factor <= derived_defaults.HIGH_RATE_FACTOR:
            cut = next((alarm.text for alarm in alarms(draft) if alarm.field == "training.max_length"), "")
            return (f"{escape(cut)} Raise Max length, or start anyway.", "Start anyway") if cut else None
        rate, usual = f"{config.training.learning_rate:g}", f"{derived_defaults.usual_learning_rate(config):g}"
        method = ", ".join(filter(None, (config.method_name, preference_name(config))))
        fact = f"The learning rate {rate} is {factor:,.0f} times the usual {usual} for {method}."
        return f"{escape(fact)} Lower it, or start anyway.", "Start anyway"

    def show(self, pending: str) -> Updates:
        """Return the progress of the start that this page waits for."""
        work = self.page.starts.find(pending)
        return self._idle() if work is None else self._progress(pending, work)

    def _progress(self, key: str, work: Work[Sequence[Run]]) -> Updates:
        status = self.job.follow(key)
        if work.error is not None:
            return self._refuse(error_box(work.error))
        updates: Updates = {
            **status,
            self.confirm.panel: HIDDEN,
            **dict.fromkeys(self._buttons, gr.update(value="Starting …", interactive=False)),
            self.sweep: gr.update(interactive=False),
            self.pending: key,
        }
        if work.result is not None:
            self.page.reader.invalidate()
            run_id = work.result[0].id
            tab = "train" if len(work.result) == 1 else "runs"
            going = {self.page.chosen_run: run_id, self.goes_to: f"{tab} {run_id} {uuid.uuid4().hex}"}
            updates |= {self.job.poll: "", self.problems: "", **going}
        return updates

    def _idle(self) -> Updates:
        return {
            **dict.fromkeys(self._buttons, gr.update(value="Start training", interactive=True)),
            self.sweep: gr.update(interactive=True),
            self.pending: "",
            self.job.poll: "",
        }

    def _refuse(self, problem: str = "") -> Updates:
        refusal = {self.problems: problem, self.goes_to: f"{REFUSED} {uuid.uuid4().hex}"}
        return {**self._idle(), **refusal, self.confirm.panel: HIDDEN}


def sweep_of(config: RunConfig, text: str) -> list[RunConfig]:
    """Return one configuration for each combination of typed values; raise ConfigError where one cannot work."""
    names = {name.rpartition(".")[2]: name for name in reversed(setting_names())}  # by field; the first of its name
    lines = [[part.strip() for part in line.partition("=")] for line in (text or "").splitlines() if line.strip()]
    # An unknown name gets a section as well: so it is refused with the closest setting.
    full_names = {name: name if "." in name else names.get(name, f"training.{name}") for name, *_ in lines}
    axes = [f"{full_names[name]}{equals}{values.rstrip(',')}" for name, equals, values in lines]
    if not axes:
        raise ConfigError([Problem("", "the sweep has no values; type a setting and its values.")])
    configs = sweep_configs(derived_defaults.given_settings(config), axes)
    return configs if "lora_alpha" in text else keep_alpha_ratio(configs, config)


def start_key(token: str, configs: Sequence[RunConfig]) -> str:
    """Return the key of a start: the same for repeated requests of one browser with one draft."""
    # The rest may follow rows counted later.
    drafts = "\0".join(json.dumps(derived_defaults.given_settings(config)) for config in configs)
    return hashlib.sha256(f"{token}\0{drafts}".encode()).hexdigest()


def why_not(draft: Draft) -> str | None:
    """Return why the draft cannot start; None if it can."""
    if draft.missing:
        return " ".join(draft.missing)
    if draft.problems:
        return f"{attention(len(draft.problems))}."
    if draft.config is None:
        return "The settings are not complete yet."
    error = draft.estimate_error
    # A run whose memory cannot be estimated may train all the same.
    if error is not None and error is not UNEXPECTED and not isinstance(error, MemoryUnknownError):
        return "See the choice of hardware above." if draft.is_elsewhere else error.what
    estimate = draft.estimate
    if estimate is not None and estimate.expected_bytes > estimate.total_bytes:
        return (
            f"It needs about {gib(estimate.expected_bytes)} GiB; {estimate.device_name} has {gib(estimate.total_bytes)} GiB. "
            "The side panel shows changes that make it fit."
        )
    return None


def render_reason(draft: Draft) -> str:
    """Return the text next to the start button: why it is disabled, or what will happen."""
    reason, list_html = why_not(draft), ""
    if reason is not None and draft.problems:
        list_html = f"<ul>{''.join(map(problem_item, draft.problems))}</ul>"
    if reason is None:
        reason = "It runs in the background and continues when you close the page."
        if draft.estimate is not None and draft.estimate.verdict == "does_not_fit":
            reason = "It does not fit in free memory now and will wait in the queue."
    return f'<div class="reason" role="status">{escape(reason)}{list_html}</div>'
