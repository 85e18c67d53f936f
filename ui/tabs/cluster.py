"""A run on a Slurm cluster: what it asks for, what is free there, and when it would start."""

import time

import gradio as gr

from engine.config.run import RunConfig
from engine.errors import ConfigError, EngineError
from engine.executors.slurm.place import ClusterPlace, JobResources, has_place, read_place
from engine.memory.estimate import GIB
from engine.paths import LoratoryHome
from engine.quantities import duration
from ui.backend.cluster import Forecast
from ui.backend.dataset_checks import CheckQuestion
from ui.components import QUICK, Updates, visible_if
from ui.draft import Draft
from ui.form import field_of
from ui.gradio_internals import Dropdown
from ui.page import Page
from ui.services import Services
from ui.views.html import error_box, facts, gib, small

WHERE = "slurm"
_SMALLEST = ("the smallest that fits", "")
_SOON_SECONDS = 60.0


def is_offered(services: Services) -> bool:
    """Whether the user may choose the cluster; in a lab, an admin has to set it up, and guests may not."""
    return services.person is None or (has_place(services.home) and not services.home.is_guest)


class ClusterPart:
    """Lays out the resources of a Slurm run; visible if the cluster is chosen."""

    def __init__(self, page: Page) -> None:
        self._page = page
        with gr.Column(visible=False, elem_id="cluster") as self.panel:
            with gr.Row():
                page.form.setting("slurm.gpus", elem_id="cluster-gpus", min_width=140)
                field = field_of("slurm.gpu_type")
                page.form.register("slurm.gpu_type", Dropdown(
                    [_SMALLEST, *_types(page.services.home)], value="", label=field.title, info=field.description,
                    allow_custom_value=True, elem_id="cluster-gpu-type", min_width=240,
                ))  # fmt: skip
                page.form.setting("slurm.nodes", elem_id="cluster-nodes", min_width=140)
            with gr.Row():
                page.form.setting("slurm.memory_gib", elem_id="cluster-memory", min_width=200)
                page.form.setting("slurm.limit_hours", elem_id="cluster-limit", min_width=200)
            self.offer = gr.HTML(elem_id="cluster-offer")
            self.forecast = gr.HTML(elem_id="cluster-forecast")
        self.looking = gr.Timer(1.0, active=False)
        page.on_draft(self.panel, lambda draft: visible_if(draft.where == WHERE))
        page.on_draft_later(self.offer, self._offer)
        page.on_draft_later(self.forecast, self._forecast)
        page.on_draft_later(self.looking, self._look_on)

    def wire(self) -> None:
        """Connect the events."""
        self.looking.tick(self.look, None, [self.forecast, self.looking], trigger_mode="once", **QUICK)

    def look(self) -> Updates:
        """Show Slurm's newest answer, without waiting for it."""
        forecast = self._page.services.forecast
        return {
            self.forecast: render_forecast(forecast.latest, is_asking=forecast.is_asking),
            self.looking: gr.update(active=forecast.is_asking),
        }

    def _offer(self, draft: Draft) -> str:
        config = self._settle(draft)
        if isinstance(config, EngineError):
            return error_box(config)
        if config is None:
            return ""
        place = read_place(self._page.services.home)
        kind = next((one for one in place.gpu_types if one.name == config.slurm.gpu_type), None)
        return render_resources(JobResources.of(config, place), kind.memory_gib if kind is not None else None, draft)

    def _forecast(self, draft: Draft) -> str:
        config = self._settle(draft)
        if config is None or isinstance(config, EngineError):
            return ""
        forecast = self._page.services.forecast
        answer = forecast.find(read_place(self._page.services.home), config)
        return render_forecast(answer, is_asking=forecast.is_asking)

    def _look_on(self, draft: Draft) -> object:
        return gr.update(active=draft.where == WHERE and self._page.services.forecast.is_asking)

    def _settle(self, draft: Draft) -> RunConfig | EngineError | None:
        """Return the draft as the cluster would read it, and why it is unknown; None elsewhere."""
        config, services = draft.config or draft.memory_config, self._page.services
        if config is None or config.run.where != WHERE:
            return None
        try:
            read_place(services.home)
            if draft.device is None or draft.estimate_error is not None:
                return draft.estimate_error
            check = services.checks.find(CheckQuestion.of(config))
            if draft.shape is None or check is None or check.report is None:
                return config
            place = services.place(WHERE, self._page.reader.summaries)
            return place.settled(config, draft.device, draft.shape, check.report)
        except EngineError as error:
            return error


def _types(home: LoratoryHome) -> list[tuple[str, str]]:
    try:
        place = read_place(home) if has_place(home) else ClusterPlace()
    except (ConfigError, EngineError):  # shown once the place is chosen
        return []
    return [(f"{kind.name} · {kind.memory_gib:g} GiB", kind.name) for kind in place.gpu_types if kind.name]


def render_resources(job: JobResources, gpu_gib: float | None, draft: Draft) -> str:
    """Return the resources that the run requests from Slurm."""
    memory = f", {gpu_gib:g} GiB" if gpu_gib is not None and job.gpus else ""
    limit = job.limit_minutes * 60
    figures = [
        (f"{job.words}{memory}", "devices"),
        (f"{gib(job.memory_gib * GIB)} GiB", "RAM per node" if job.nodes > 1 else "RAM"),
        (duration(limit), "time limit"),
    ]
    needs = f"90% upper bound: {gib(draft.estimate.needed_bytes)} GiB of GPU memory. " if draft.estimate else ""
    return facts(figures) + small(
        f"{needs if job.gpus else ''}Near the time limit, the run saves and continues as another job."
    )


def render_forecast(forecast: Forecast | None, *, is_asking: bool, now: float | None = None) -> str:
    """Return what is free in the cluster, and when the run would start."""
    if forecast is None:
        return small("Asking Slurm what is free …", role="status") if is_asking else ""
    free = ", ".join(f"{count} × {name or 'GPU'}" for name, count in forecast.free.items())
    words = [f"Free now: {free}."] if free else []
    if forecast.start is not None:
        seconds = forecast.start - (time.time() if now is None else now)
        words.append(f"Expected start: in {duration(seconds)}." if seconds > _SOON_SECONDS else "Expected start: now.")
    elif is_asking:
        words.append("Asking Slurm when it would start …")
    elif forecast.trouble is None:
        words.append("Slurm gives no expected start.")
    trouble = error_box(forecast.trouble) if forecast.trouble is not None else ""
    return (small(" ".join(words), role="status") if words else "") + trouble
