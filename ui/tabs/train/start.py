"""The start on the Train tab: one run, or a sweep over learning rates and ranks, filed once however often it is sent."""

import hashlib
import uuid
from collections.abc import Sequence
from html import escape
from typing import Any, NamedTuple

import gradio as gr
from gradio.context import Context
from gradio.events import Dependency

from engine.config.run import RunConfig
from engine.errors import ConfigError, EngineError, MemoryUnknownError, Problem
from engine.runs.sweep import keep_alpha_ratio, sweep_configs
from ui.backend.starts import Starts, StartUnderWay
from ui.draft import Draft
from ui.errors import UNEXPECTED, trouble
from ui.page import STORAGE_KEY, Page
from ui.views.quantities import gib

_LOOK_SECONDS = 0.5
_SWEEP_LEAD = (
    '<p class="small">Several values each, separated by commas: a run for every combination is filed into the queue, and '
    "the Runs tab lays them over each other. What stays empty keeps the value of the form.</p>"
)


class Started(NamedTuple):
    """What one look at a start puts on the page."""

    problems: Any
    chosen_run: Any
    token: Any
    start: Any
    sweep: Any
    pending: Any
    timer: Any
    tabs_to: Any  # "follow", "runs" or ""


class StartPart:
    """Lays out the start; every start is worked off behind the page, and a clock looks how far it has come."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self._starts = Starts()
        self.problems = gr.HTML(elem_id="start-problems")
        with gr.Row(elem_id="start-row"):
            self.start = gr.Button(
                "Start training", variant="primary", interactive=False, elem_id="start", scale=0, min_width=190
            )
            self.reason = gr.HTML(elem_id="start-reason")
        with gr.Accordion("Try several values (a sweep)", open=False, elem_id="sweep-fold"):
            gr.HTML(_SWEEP_LEAD)
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
                True, label="Alpha follows the rank", info="Keeps lora_alpha / r as it is in the form.",
                elem_id="sweep-ratio",
            )  # fmt: skip
            self.sweep = gr.Button("File the sweep", interactive=False, elem_id="sweep-start", scale=0, min_width=190)
        # Together with the draft it names a start, so that two clicks, or two tabs, start one run.
        self._token = gr.BrowserState("", storage_key="loratory-start", secret=STORAGE_KEY)
        self._pending = gr.State("")
        self.goes_to = gr.State("")
        self.timer = gr.Timer(_LOOK_SECONDS, active=False)
        page.on_draft(self.start, lambda draft: gr.update(interactive=why_not(draft) is None))
        page.on_draft(self.sweep, lambda draft: gr.update(interactive=draft.config is not None and not draft.problems))
        page.on_draft(self.reason, render_reason)
        self._draft = gr.Textbox("", visible=False)  # what a refusal was about
        page.on_draft(self._draft, _draft_key)

    def wire(self) -> Dependency:
        """Connect the events; after the one that comes back, a run may have been filed and be the chosen one."""
        page, form = self._page, self._page.form
        quick: dict[str, Any] = {"show_progress": "hidden", "queue": False, "api_visibility": "private"}
        assert Context.root_block is not None
        Context.root_block.load(_token, self._token, self._token, **quick)
        outputs = [
            self.problems, page.chosen_run, self._token, self.start, self.sweep, self._pending, self.timer,
            self.goes_to,
        ]  # fmt: skip
        changed: Any = self._draft.change
        changed(lambda: "", None, self.problems, **quick)
        named = [self._token, page.copied_from]
        self.start.click(self.begin, [*named, *form.components], outputs, trigger_mode="once", **quick)
        self.sweep.click(
            self.begin_sweep,
            [*named, self.rates, self.ranks, self.ratio, *form.components],
            outputs,
            trigger_mode="once",
            **quick,
        )
        return self.timer.tick(self.look, self._pending, outputs, trigger_mode="once", **quick)

    def begin(self, token: str, copied_from: str, *values: Any) -> Started:
        """Begin to check the draft and to file its run."""
        draft = self._page.draft(values)
        if draft.config is None:
            return _refused(ConfigError(draft.problems))
        config, launcher = draft.config, self._page.services.launcher
        key, origin = start_key(token, [config]), self._origin(copied_from)
        return self._shown(
            key,
            self._starts.begin(key, lambda say: [launcher.start(config, key, copied_from=origin, on_progress=say)]),
        )

    def begin_sweep(self, token: str, copied_from: str, rates: str, ranks: str, ratio: bool, *values: Any) -> Started:
        """Begin to check every combination and to file a run for each."""
        draft = self._page.draft(values)
        try:
            if draft.config is None:
                raise ConfigError(draft.problems)
            configs = sweep_of(draft.config, rates, ranks, alpha_follows=ratio)
        except EngineError as error:
            return _refused(error)
        launcher, key, origin = self._page.services.launcher, start_key(token, configs), self._origin(copied_from)
        return self._shown(
            key,
            self._starts.begin(key, lambda say: launcher.start_all(configs, key, copied_from=origin, on_progress=say)),
        )

    def _origin(self, copied_from: str) -> str | None:
        """The run whose settings the draft began as, where there is still such a run."""
        return copied_from if self._page.reader.exists(copied_from) else None

    def look(self, pending: str) -> Started:
        """How far the start has come that this page waits for."""
        start = self._starts.find(pending)
        return _idle() if start is None else self._shown(pending, start)

    def _shown(self, key: str, start: StartUnderWay) -> Started:
        if start.error is not None:
            return _refused(start.error)
        if start.runs:
            # A new token: the same draft, started again on purpose, is another run.
            self._page.reader.look_again()
            return _idle()._replace(
                problems="",
                chosen_run=start.runs[0].id,
                token=uuid.uuid4().hex,
                tabs_to="follow" if len(start.runs) == 1 else "runs",
            )
        busy = gr.update(interactive=False)
        waiting = f'<p class="small" role="status">{escape(start.said)}</p>'
        skip = gr.skip()
        return Started(
            waiting, skip, skip, gr.update(value="Starting …", interactive=False), busy, key, _clock(True), ""
        )


def sweep_of(config: RunConfig, rates: str, ranks: str, *, alpha_follows: bool) -> list[RunConfig]:
    """One configuration for each combination of what a person typed.

    Raises:
        ConfigError: If nothing was typed, or a value cannot work.
    """
    axes = [
        f"{name}={text.strip().strip(',')}"
        for name, text in (("training.learning_rate", rates or ""), ("adapter.r", ranks or ""))
        if text.strip()
    ]
    if not axes:
        raise ConfigError([Problem("", "the sweep has no values; give several learning rates, or ranks.")])
    configs = sweep_configs(config.model_dump(mode="json"), axes)
    return keep_alpha_ratio(configs, config) if alpha_follows else configs


def start_key(token: str, configs: Sequence[RunConfig]) -> str:
    """Names one start: the same draft from the same browser, however often it is sent."""
    drafts = "\0".join(config.model_dump_json() for config in configs)
    return hashlib.sha256(f"{token}\0{drafts}".encode()).hexdigest()


def _draft_key(draft: Draft) -> str:
    """The same for the same draft; a refusal of another one stands on the page no longer."""
    return hashlib.sha256(repr(draft.mapping).encode()).hexdigest()


def why_not(draft: Draft) -> str | None:
    """Why the draft cannot start; None where it can."""
    if draft.missing:
        return " ".join(draft.missing)
    if draft.problems:
        count = len(draft.problems)
        return "One setting needs your attention." if count == 1 else f"{count} settings need your attention."
    if draft.config is None:
        return "The settings are not complete yet."
    error = draft.estimate_error
    # A run whose memory cannot be estimated may train all the same.
    if error is not None and error is not UNEXPECTED and not isinstance(error, MemoryUnknownError):
        return error.what
    estimate = draft.estimate
    if estimate is not None and estimate.expected_bytes > estimate.total_bytes:
        return (
            f"It needs about {gib(estimate.expected_bytes)} GiB; {estimate.device_name} has {gib(estimate.total_bytes)} GiB. "
            "The panel beside shows what would make it fit."
        )
    return None


def render_reason(draft: Draft) -> str:
    """What stands beside the start button: why it is not to be pressed, or what will happen."""
    reason = why_not(draft)
    if reason is not None:
        problems = "".join(
            f"<li><code>{escape(problem.field)}</code> {escape(problem.message)}</li>" for problem in draft.problems
        )
        listed = f"<ul>{problems}</ul>" if problems else ""
        return f'<div class="reason" role="status">{escape(reason)}{listed}</div>'
    if draft.estimate is not None and draft.estimate.verdict == "does_not_fit":
        return (
            '<div class="reason" role="status">It does not fit the memory that is free now. Started, it waits in the '
            "queue until there is room.</div>"
        )
    return '<div class="reason" role="status">It runs in the background, and goes on when you close the page.</div>'


def _idle() -> Started:
    skip = gr.skip()
    ready = gr.update(value="Start training", interactive=True)
    return Started(skip, skip, skip, ready, gr.update(interactive=True), "", _clock(False), "")


def _refused(error: EngineError) -> Started:
    return _idle()._replace(problems=trouble(error))


def _clock(active: bool) -> Any:
    return gr.update(active=active)


def _token(token: str) -> str:
    return token or uuid.uuid4().hex
