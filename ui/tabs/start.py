"""The start on the Train tab: a run, or a sweep over learning rates and ranks; repeated requests start it once."""

import hashlib
import json
import uuid
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

import gradio as gr

from engine.config.run import RunConfig
from engine.config.suited import given_settings
from engine.errors import ConfigError, DatasetError, EngineError, MemoryUnknownError, Problem
from engine.runs.run import Run
from engine.runs.sweep import keep_alpha_ratio, sweep_configs
from ui.backend.background import UNEXPECTED, BackgroundWork, FunctionJob, Message, Work
from ui.backend.dataset_checks import CheckQuestion
from ui.components import QUICK, Updates, clear_error_after
from ui.draft import Draft
from ui.gradio_internals import enclosing_page
from ui.page import Page, browser_state
from ui.views.html import attention, error_box, gib, small, with_code

_NAMED_BY_BROWSER = "(token) => token || crypto.getRandomValues(new Uint32Array(4)).join('-')"


class StartPart:
    """Lays out the start; it runs in the background, and a timer looks at its progress."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self._starts: BackgroundWork[Sequence[Run]] = BackgroundWork()
        self.problems = gr.HTML(elem_id="start-problems")
        with gr.Row(elem_id="start-row"):
            self.start = gr.Button(
                "Start training", variant="primary", interactive=False, elem_id="start", scale=0, min_width=190
            )
            self.reason = gr.HTML(elem_id="start-reason")
        with gr.Accordion("Sweep", open=False, elem_id="sweep-fold"):
            lead = "Several values, separated by commas: every combination is queued as a run. "
            gr.HTML(small(f"{lead}Empty fields use the form's value."))
            with gr.Row():
                self.rates = gr.Textbox(
                    label="Learning rates", placeholder="1e-4, 2e-4, 5e-4", max_lines=1, max_length=400,
                    elem_id="sweep-rates", min_width=240,
                )  # fmt: skip
                self.ranks = gr.Textbox(
                    label="Ranks (LoRA)", placeholder="8, 16, 32", max_lines=1, max_length=400, elem_id="sweep-ranks",
                    min_width=240,
                )  # fmt: skip
            self.ratio = gr.Checkbox(
                True, label="Alpha follows the rank", info="Keeps the form's lora_alpha / r.", elem_id="sweep-ratio"
            )
            self.sweep = gr.Button("Queue sweep", interactive=False, elem_id="sweep-start", scale=0, min_width=190)
        self._buttons = [self.start]
        # Identifies a start together with the draft: two clicks start one run.
        self.token = browser_state("", "start")
        self.pending = gr.State("")  # key of the start that this page waits for
        # After a start: the tab, "train" or "runs", and the id of the first run. A late look leaves it as it is.
        self.goes_to = gr.Textbox("", visible=False)
        self.timer = gr.Timer(0.5, active=False)
        page.on_draft(self.start, lambda draft: gr.update(interactive=why_not(draft) is None))
        page.on_draft(self.sweep, lambda draft: gr.update(interactive=draft.config is not None and not draft.problems))
        page.on_draft(self.reason, render_reason)
        self._draft = gr.Textbox("", visible=False)  # key of the draft: the error of another one is no longer shown
        page.on_draft(self._draft, lambda draft: hashlib.sha256(repr(draft.mapping).encode()).hexdigest())

    def offer(self, button: gr.Button) -> None:
        """Let another button start the run; it must be laid out before `wire`."""
        self._buttons.append(button)

    def wire(self) -> None:
        """Connect the events; `goes_to` changes once a run is queued and chosen."""
        page, components = self._page, self._page.form.components
        enclosing_page().load(None, self.token, self.token, js=_NAMED_BY_BROWSER, **QUICK)
        outputs = [
            self.problems, page.chosen_run, self.token, self.sweep, self.pending, self.timer, self.goes_to, *self._buttons,
        ]  # fmt: skip
        self._draft.change(None, None, self.problems, js="() => ''", **QUICK)
        name_inputs = [self.token, page.copied_from]
        once: dict[str, Any] = {"trigger_mode": "once", **QUICK}
        gr.on([button.click for button in self._buttons], self.begin, [*name_inputs, *components], outputs, **once)
        sweep = [self.rates, self.ranks, self.ratio]
        self.sweep.click(self.begin_sweep, [*name_inputs, *sweep, *components], outputs, **once)
        clear_error_after(self.problems, sweep)  # these are not part of the draft
        self.timer.tick(self.look, self.pending, outputs, **once)

    def begin(self, token: str, copied_from: str, *values: Any) -> Updates:
        """Begin to check the draft and to queue its run."""
        return self._begin(token, copied_from, values)

    def begin_sweep(self, token: str, copied_from: str, rates: str, ranks: str, ratio: bool, *values: Any) -> Updates:
        """Begin to check every combination and to queue a run for each."""
        return self._begin(
            token, copied_from, values, lambda config: sweep_of(config, rates, ranks, alpha_follows=ratio)
        )

    def _begin(
        self, token: str, copied_from: str, values: Sequence[Any],
        sweep: Callable[[RunConfig], list[RunConfig]] | None = None,
    ) -> Updates:  # fmt: skip
        draft, services = self._page.draft(values), self._page.services
        launcher, log, checks = services.launcher, services.log, services.checks
        try:
            if draft.config is None:
                raise ConfigError(draft.problems)
            configs = [draft.config] if sweep is None else sweep(draft.config)
        except EngineError as error:
            return self._show_error(error)
        dataset, check = configs[0].dataset, checks.find(CheckQuestion.of(draft.config))
        previewed = check.report if check is not None else None
        key, origin = start_key(token, configs), copied_from if self._page.reader.exists(copied_from) else None

        def start(report: Callable[[Message], None]) -> Sequence[Run]:
            def note(words: str) -> None:
                report(Message(words))

            same: dict[str, Any] = {"copied_from": origin, "on_progress": note, "previewed": previewed}
            try:
                runs = launcher.start_all(configs, key, **same) if sweep else [launcher.start(configs[0], key, **same)]
            except DatasetError:
                checks.forget(dataset)
                raise
            for run in runs:
                log("run started", run.id)
            return runs

        return self._progress(key, self._starts.start_once(key, "A start", FunctionJob(start), again=True))

    def look(self, pending: str) -> Updates:
        """Return the progress of the start that this page waits for."""
        work = self._starts.find(pending)
        return self._idle() if work is None else self._progress(pending, work)

    def _progress(self, key: str, work: Work[Sequence[Run]]) -> Updates:
        if work.error is not None:
            return self._show_error(work.error)
        if work.result is not None:
            # A new token: starting the same draft again makes another run.
            self._page.reader.look_again()
            return {
                **self._idle(),
                self.problems: "",
                self._page.chosen_run: work.result[0].id,
                self.token: uuid.uuid4().hex,
                self.goes_to: f"{'train' if len(work.result) == 1 else 'runs'} {work.result[0].id}",
            }
        return {
            self.problems: small(work.words, role="status"),
            **dict.fromkeys(self._buttons, gr.update(value="Starting …", interactive=False)),
            self.sweep: gr.update(interactive=False),
            self.pending: key,
            self.timer: gr.update(active=True),
        }

    def _idle(self) -> Updates:
        return {
            **dict.fromkeys(self._buttons, gr.update(value="Start training", interactive=True)),
            self.sweep: gr.update(interactive=True),
            self.pending: "",
            self.timer: gr.update(active=False),
        }

    def _show_error(self, error: EngineError) -> Updates:
        return {**self._idle(), self.problems: error_box(error)}


def sweep_of(config: RunConfig, rates: str, ranks: str, *, alpha_follows: bool) -> list[RunConfig]:
    """Return one configuration for each combination of typed values.

    Raises:
        ConfigError: If nothing was typed, or a value cannot work.
    """
    axes = [
        f"{name}={text.strip().strip(',')}"
        for name, text in (("training.learning_rate", rates or ""), ("adapter.r", ranks or ""))
        if text.strip()
    ]
    if not axes:
        raise ConfigError([Problem("", "the sweep has no values; type several learning rates, or ranks.")])
    configs = sweep_configs(given_settings(config), axes)
    return keep_alpha_ratio(configs, config) if alpha_follows else configs


def start_key(token: str, configs: Sequence[RunConfig]) -> str:
    """Return the key of a start: the same for repeated requests of one browser with one draft."""
    drafts = "\0".join(
        json.dumps(given_settings(config)) for config in configs
    )  # the rest may follow rows counted later
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
        problems = (f"<li><code>{escape(field)}</code> {with_code(message)}</li>" for field, message in draft.problems)
        list_html = f"<ul>{''.join(problems)}</ul>"
    if reason is None:
        reason = "It runs in the background and continues when you close the page."
        if draft.estimate is not None and draft.estimate.verdict == "does_not_fit":
            reason = "It does not fit in free memory now and will wait in the queue."
    return f'<div class="reason" role="status">{escape(reason)}{list_html}</div>'
