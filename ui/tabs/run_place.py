"""Where a run trains or a model is loaded: here, on a Slurm cluster, or at Hugging Face Jobs, with the settings of each."""

import contextlib
import time
from collections.abc import Mapping, Sequence
from functools import partial
from html import escape
from typing import Any, get_args

import gradio as gr

from loratory.engine.accounts.people import Action, Logins, Person, require
from loratory.engine.config.load import setting_names
from loratory.engine.config.run import RunConfig, WorkPlace
from loratory.engine.errors import EngineError, SignInNeededError
from loratory.engine.memory.estimate import GIB
from loratory.engine.paths import LoratoryHome
from loratory.engine.places import PLACES
from loratory.engine.places.huggingface_jobs.account import Flavor, flavor_named, sign_in
from loratory.engine.places.run_place import HuggingFaceJobs, SlurmCluster, ThisMachine
from loratory.engine.places.slurm.place import JobResources, has_place, read_place
from loratory.engine.places.ssh.machine import SshMachines, machine_devices, read_machines
from loratory.engine.quantities import duration
from loratory.ui.backend.cluster import Forecast
from loratory.ui.backend.dataset_checks import CheckQuestion
from loratory.ui.components import ONCE, QUICK, Updates, clear_error_after, shown_in_place, visible_if
from loratory.ui.draft import Draft
from loratory.ui.form import field_of
from loratory.ui.gradio_internals import Dropdown, Radio
from loratory.ui.page import Page
from loratory.ui.services import Services
from loratory.ui.views.html import dollars, error_box, facts, gib, notice, small

_SIGN_IN = (
    "Jobs run under your Hugging Face account, which pays for them. Enter a token above to see hardware and prices."
)
_SOON_SECONDS = 60.0


def offers_cluster(services: Services) -> bool:
    """Whether the user may choose the cluster; in a lab, an admin has to set it up, and guests may not."""
    return services.person is None or (has_place(services.home) and not services.home.is_guest)


def work_place(services: Services, *, label: str = "Where", elem_id: str) -> gr.Radio:
    """Place the choice of where a model is loaded, or a run resumes; visible with a cluster."""
    return Radio(
        [(PLACES[name].label, name) for name in get_args(WorkPlace)], value=ThisMachine.name, label=label, elem_id=elem_id,
        visible=has_place(services.home) and offers_cluster(services),
    )  # fmt: skip


def chosen_place(chosen: str | None) -> WorkPlace:
    """Return the place that a browser named."""
    return next((place for place in get_args(WorkPlace) if place == chosen), "local")


class RunPlacePart:
    """Lays out the choice of the place, and below it the settings of each; one place alone is not shown."""

    def __init__(self, page: Page) -> None:
        kinds = {name: _PANELS.get(name, PlacePanel) for name in PLACES if name != ThisMachine.name}
        available = [name for name, kind in kinds.items() if kind.is_offered(page.services)]
        names = [ThisMachine.name, *available]
        if available:
            page.form.setting("run.where", choices=[(PLACES[name].label, name) for name in names], elem_id="where")
        self.panels: dict[str, PlacePanel] = {name: kinds[name](page, name) for name in available}

    def wire(self) -> None:
        """Connect the events."""
        for panel in self.panels.values():
            panel.wire()


class PlacePanel:
    """Lays out the settings of a place; visible if it is chosen. A subclass shows more than its fields."""

    elem_id = ""  # that of the name
    offer: gr.HTML

    def __init__(self, page: Page, name: str) -> None:
        self.page, self.name = page, name
        with gr.Column(visible=False, elem_id=self.elem_id or name) as self.panel:
            self.lay_out()
        page.on_draft(self.panel, lambda draft: visible_if(draft.where == self.name))
        page.on_draft_later(self.offer, shown_in_place(self.render_offer))

    @classmethod
    def is_offered(cls, services: Services) -> bool:
        """Whether the user may choose the place."""
        return services.person is None

    def lay_out(self) -> None:
        """Lay out the settings, and `offer`."""
        with gr.Row():
            for name in setting_names():
                if name.startswith(f"{self.name}."):
                    self.page.form.setting(name, elem_id=name.replace(".", "-"), min_width=200)
        self.offer = gr.HTML()

    def render_offer(self, draft: Draft) -> str:  # noqa: ARG002
        """Return what a draft would get there.

        Raises:
            EngineError: If it is not known.
        """
        return ""

    def wire(self) -> None:
        """Connect the events."""

    def hardware(self, name: str, elem_id: str, first: tuple[str, str], choices: Sequence[tuple[str, str]] = ()) -> Any:
        """Place the choice of the hardware, which can be typed as well; by default that of `first`."""
        field = field_of(name)
        hardware = Dropdown(
            [first, *choices], value="", label=field.title, info=field.description, allow_custom_value=True,
            elem_id=elem_id, min_width=240,
        )  # fmt: skip
        return self.page.form.register(name, hardware)

    def fill(self, draft: Draft) -> RunConfig | None:
        """Return the draft with the settings that the place fills in; None elsewhere, and while it has no device.

        Raises:
            EngineError: Why it can get none.
        """
        config, services = draft.config or draft.memory_config, self.page.services
        if config is None or config.run.where != self.name:
            return None
        if draft.estimate_error is not None:
            raise draft.estimate_error
        if draft.device is None:
            return None
        check = services.checks.find(CheckQuestion.from_config(config))
        if draft.shape is None or check is None or check.report is None:
            return config
        place = services.place(self.name, self.page.reader.summaries)
        return place.complete(config, draft.device, draft.shape, check.report)


class ClusterPanel(PlacePanel):
    """The resources of a Slurm run, what is free, and when it would start."""

    elem_id = "cluster"

    def __init__(self, page: Page, name: str) -> None:
        super().__init__(page, name)
        self.timer = gr.Timer(1.0, active=False)
        page.on_draft_later(self.forecast, self._forecast)
        page.on_draft_later(
            self.timer, lambda draft: gr.update(active=draft.where == self.name and page.services.forecast.is_querying)
        )

    @classmethod
    def is_offered(cls, services: Services) -> bool:
        return offers_cluster(services)

    def lay_out(self) -> None:
        with gr.Row():
            self.page.form.setting("slurm.gpus", elem_id="cluster-gpus", min_width=140)
            types = _types(self.page.services.home)
            self.hardware("slurm.gpu_type", "cluster-gpu-type", ("the smallest that fits", ""), types)
            self.page.form.setting("slurm.nodes", elem_id="cluster-nodes", min_width=140)
        with gr.Row():
            self.page.form.setting("slurm.memory_gib", elem_id="cluster-memory", min_width=200)
            self.page.form.setting("slurm.limit_hours", elem_id="cluster-limit", min_width=200)
        self.offer = gr.HTML(elem_id="cluster-offer")
        self.forecast = gr.HTML(elem_id="cluster-forecast")

    def wire(self) -> None:
        self.timer.tick(self.show_latest, None, [self.forecast, self.timer], trigger_mode="once", **QUICK)

    def show_latest(self) -> Updates:
        """Show Slurm's newest answer, without waiting for it."""
        forecast = self.page.services.forecast
        return {
            self.forecast: render_forecast(forecast.latest, is_querying=forecast.is_querying),
            self.timer: gr.update(active=forecast.is_querying),
        }

    def render_offer(self, draft: Draft) -> str:
        config = self.fill(draft)
        return render_resources(config, self.page.services.home, draft) if config is not None else ""

    def _forecast(self, draft: Draft) -> str:
        with contextlib.suppress(EngineError):  # shown by the offer
            if (config := self.fill(draft)) is not None:
                forecast = self.page.services.forecast
                answer = forecast.find(read_place(self.page.services.home), config)
                return render_forecast(answer, is_querying=forecast.is_querying)
        return ""


class MachinesPanel(PlacePanel):
    """The machines that a person added, with their devices and free memory."""

    @classmethod
    def is_offered(cls, services: Services) -> bool:
        with contextlib.suppress(EngineError):  # a damaged list: the command line says so
            return services.person is None and bool(read_machines(services.home))
        return False

    def lay_out(self) -> None:
        names = [(name, name) for name in read_machines(self.page.services.home)]
        self.hardware("ssh.machine", "ssh-machine", ("the one with the most free memory", ""), names)
        self.offer = gr.HTML(elem_id="ssh-offer")

    def render_offer(self, draft: Draft) -> str:
        """Return the devices of each machine as they are now; of one that does not answer, why."""
        if draft.where != self.name:
            return ""
        lines = []
        for name, machine in read_machines(self.page.services.home).items():
            try:
                facts_of = [f"{d.name}, {gib(d.free_bytes)} GiB free" for d in machine_devices(name, machine)]
            except EngineError as error:
                facts_of = [str(error)]
            lines.append(f"<li><b>{escape(name)}</b> {escape('; '.join(facts_of))}</li>")
        return f"<ul>{''.join(lines)}</ul>"


class JobsPanel(PlacePanel):
    """The hardware at Hugging Face with its price, and the login of a lab's users."""

    _CHEAPEST = ("the cheapest that fits", "")

    def __init__(self, page: Page, name: str) -> None:
        super().__init__(page, name)
        hardware = page.services.hardware
        self.timer = gr.Timer(0.2, active=False)
        page.on_draft(self.timer, lambda draft: gr.update(active=draft.where == self.name and not hardware.is_known))

    @classmethod
    def is_offered(cls, services: Services) -> bool:
        return services.person is None or services.logins is not None

    def lay_out(self) -> None:
        services = self.page.services
        is_lab = services.person is not None and services.logins is not None
        self._login = JobsLogin(self.page, services.person, services.logins) if is_lab else None  # type: ignore[arg-type]
        with gr.Row():
            self.flavor = self.hardware("jobs.flavor", "jobs-flavor", self._CHEAPEST)
            self.page.form.setting("jobs.limit_hours", elem_id="jobs-limit", min_width=160)
            self.page.form.setting("jobs.namespace", elem_id="jobs-namespace", min_width=200)
        self.offer = gr.HTML(elem_id="jobs-offer")

    def wire(self) -> None:
        hardware_event = self.timer.tick(self.fetch_hardware, None, [self.flavor, self.timer], **ONCE)
        self.page.refresh_after(hardware_event)
        if self._login is not None:
            self._login.wire()

    def fetch_hardware(self) -> Updates:
        """Fetch hardware and prices from Hugging Face; the draft shows the result."""
        flavors: Sequence[Flavor] = ()
        hardware = self.page.services.hardware
        with contextlib.suppress(EngineError):  # stored, and shown with the draft
            # A draft that was read before the answer starts the timer once more.
            flavors = hardware.known() if hardware.is_known else hardware.refresh()
        choices = [self._CHEAPEST]
        choices += [
            (f"{f.title} · {gib(f.device.total_bytes)} GiB · {dollars(f.price_per_hour_usd)}/h", f.name)
            for f in flavors
        ]
        return {self.flavor: gr.update(choices=choices), self.timer: gr.update(active=False)}

    def render_offer(self, draft: Draft) -> str:
        if draft.where != self.name:
            return ""
        hardware = self.page.services.hardware
        try:
            flavors = hardware.known()
        except SignInNeededError:  # shown as the next step, not as an error
            return notice(_SIGN_IN)
        except EngineError as error:
            return small(error.what, role="status") if hardware.trouble is None else error_box(error)
        config = self.fill(draft)
        if config is None:
            return ""
        fitting = (flavor for flavor in flavors if flavor.device == draft.device)
        flavor = flavor_named(flavors, config.jobs.flavor) or next(fitting)
        return render_hardware(flavor, config.jobs.limit_hours, draft)


# Of places that show more than their settings.
_PANELS: Mapping[str, type[PlacePanel]] = {
    SshMachines.name: MachinesPanel,
    SlurmCluster.name: ClusterPanel,
    HuggingFaceJobs.name: JobsPanel,
}


class JobsLogin:
    """Lays out sign-in and sign-out at Hugging Face for a lab's users."""

    def __init__(self, page: Page, person: Person, logins: Logins) -> None:
        self.page, self._person, self._logins = page, person, logins
        self.token = gr.Textbox(
            label="Your Hugging Face token", info="Needs write access and jobs permission. Kept in memory until you sign out.",
            type="password", max_lines=1, elem_id="jobs-token",
        )  # fmt: skip
        lead = small("Signed in at Hugging Face. Jobs run under your account.")
        signed_in = gr.HTML(lead, visible=False, elem_id="jobs-signed-in")
        with gr.Row():
            self.use = gr.Button("Use token", scale=0, min_width=150, elem_id="jobs-use-token")
            self.forget = gr.Button("Forget token", scale=0, min_width=150, elem_id="jobs-forget-token")
        self.status = gr.HTML(elem_id="jobs-login-status")
        for component, is_for_login in ((self.token, True), (self.use, True), (signed_in, False), (self.forget, False)):
            page.on_draft(component, partial(self._visible, is_for_login))

    def _visible(self, is_for_login: bool, _draft: Draft) -> Any:
        return visible_if((self._logins.token_of(self._person.name) is None) is is_for_login)

    def wire(self) -> None:
        """Connect the events."""
        events = [self.use.click, self.token.submit]
        use_event = gr.on(events, shown_in_place(self.sign_in), self.token, self.status, **ONCE)
        self.page.refresh_after(use_event.then(lambda: "", None, self.token, **QUICK))
        clear_error_after(self.status, [], typed_box=self.token)
        self.page.refresh_after(self.forget.click(self.sign_out, None, self.status, **QUICK))

    def sign_in(self, token: str | None) -> str:
        """Keep a token in memory once Hugging Face has accepted it."""
        require(self._person, Action.USE_JOBS)
        account = sign_in(self._logins, self._person.name, token or "")
        self.page.services.hardware.forget()
        return small(f"Signed in at Hugging Face as {account}.", role="status")

    def sign_out(self) -> str:
        """Forget the token."""
        self._logins.forget(self._person.name)
        self.page.services.hardware.forget()
        return small("Token removed. Jobs continue; monitoring resumes when you sign in.", role="status")


def _types(home: LoratoryHome) -> list[tuple[str, str]]:
    with contextlib.suppress(EngineError):  # shown once the place is chosen
        kinds = read_place(home).gpu_types if has_place(home) else ()
        return [(f"{kind.name} · {kind.memory_gib:g} GiB", kind.name) for kind in kinds if kind.name]
    return []


def render_resources(config: RunConfig, home: LoratoryHome, draft: Draft) -> str:
    """Return the resources that the run requests from Slurm."""
    cluster = read_place(home)
    job = JobResources.from_config(config, cluster)
    kind = next((kind for kind in cluster.gpu_types if kind.name == config.slurm.gpu_type), None)
    memory = f", {kind.memory_gib:g} GiB" if kind is not None and job.gpus else ""
    figures = [
        (f"{job.label}{memory}", "devices"),
        (f"{gib(job.memory_gib * GIB)} GiB", "RAM per node" if job.nodes > 1 else "RAM"),
        (duration(job.limit_minutes * 60), "time limit"),
    ]
    needs = f"90% upper bound: {gib(draft.estimate.needed_bytes)} GiB of GPU memory. " if draft.estimate else ""
    continues = "Near the time limit, the run saves and continues as another job."
    return facts(figures) + small(f"{needs if job.gpus else ''}{continues}")


def render_forecast(forecast: Forecast | None, *, is_querying: bool, now: float | None = None) -> str:
    """Return what is free in the cluster, and when the run would start."""
    if forecast is None:
        return small("Querying Slurm for free GPUs …", role="status") if is_querying else ""
    free = ", ".join(f"{count} × {name or 'GPU'}" for name, count in forecast.free.items())
    sentences = [f"Free now: {free}."] if free else []
    if forecast.start is not None:
        seconds = forecast.start - (time.time() if now is None else now)
        start = f"in {duration(seconds)}" if seconds > _SOON_SECONDS else "now"
        sentences.append(f"Expected start: {start}.")
    elif is_querying:
        sentences.append("Querying Slurm for the expected start …")
    elif forecast.trouble is None:
        sentences.append("Slurm gives no expected start.")
    trouble = error_box(forecast.trouble) if forecast.trouble is not None else ""
    return (small(" ".join(sentences), role="status") if sentences else "") + trouble


def render_hardware(flavor: Flavor, limit_hours: float | None, draft: Draft) -> str:
    """Return hardware, price, and the maximum cost of the run."""
    figures = [
        (escape(flavor.title), "hardware"),
        (f"{gib(flavor.device.total_bytes)} GiB", "memory"),
        (dollars(flavor.price_per_hour_usd), "per hour"),
    ]
    if limit_hours is None:
        figures.append(("?", "time limit, known once the rows are counted"))
    else:
        figures += [(f"{limit_hours:g} h", "time limit"), (dollars(flavor.price_per_hour_usd * limit_hours), "at most")]
    needs = f"90% upper bound: {gib(draft.estimate.needed_bytes)} GiB. " if draft.estimate is not None else ""
    return facts(figures) + small(
        f"{needs}Hugging Face bills your account by the minute. Data, settings and results go through a private bucket, "
        "which is emptied when the run ends."
    )
