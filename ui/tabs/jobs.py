"""Where a run trains: here, on a cluster, or at Hugging Face Jobs, with the maximum cost."""

import contextlib
from collections.abc import Sequence
from html import escape

import gradio as gr

from engine.accounts.logins import Logins
from engine.accounts.people import Action, Person, require
from engine.errors import EngineError, SignInNeededError
from engine.executors.huggingface_jobs.account import Flavor, flavor_named, sign_in
from ui.backend.dataset_checks import CheckQuestion
from ui.components import QUICK, SLOW, Updates, clear_error_after, visible_if
from ui.draft import PLACES, Draft
from ui.form import field_of
from ui.gradio_internals import Dropdown
from ui.page import Page
from ui.tabs import cluster
from ui.views.html import dollars, error_box, facts, gib, notice, small

_SIGN_IN = (
    "Jobs run under your Hugging Face account, which pays for them. Enter a token above to see hardware and prices."
)
_WHERE = "jobs"
_CHEAPEST = ("the cheapest that fits", "")


class JobsLogin:
    """Lays out sign-in and sign-out at Hugging Face for a lab's users."""

    def __init__(self, page: Page, person: Person, logins: Logins) -> None:
        self._page, self._person, self._logins = page, person, logins
        self.token = gr.Textbox(
            label="Your Hugging Face token", info="Needs write access and jobs permission. Kept in memory until you sign out.",
            type="password", max_lines=1, elem_id="jobs-token",
        )  # fmt: skip
        signed_in = gr.HTML(
            small("Signed in at Hugging Face. Jobs run under your account."), visible=False, elem_id="jobs-signed-in"
        )
        with gr.Row():
            self.use = gr.Button("Use token", scale=0, min_width=150, elem_id="jobs-use-token")
            self.forget = gr.Button("Forget token", scale=0, min_width=150, elem_id="jobs-forget-token")
        self.status = gr.HTML(elem_id="jobs-login-status")

        def is_signed_in() -> bool:
            return logins.token_of(person.name) is not None

        for component in (self.token, self.use):
            page.on_draft(component, lambda _: visible_if(not is_signed_in()))
        for component in (signed_in, self.forget):
            page.on_draft(component, lambda _: visible_if(is_signed_in()))

    def wire(self) -> None:
        """Connect the events."""
        use_event = gr.on(
            [self.use.click, self.token.submit], self._use, self.token, self.status, trigger_mode="once", **SLOW
        )
        self._page.refresh_after(use_event.then(lambda: "", None, self.token, **QUICK))
        clear_error_after(self.status, [], typed_box=self.token)
        self._page.refresh_after(self.forget.click(self._forget, None, self.status, **QUICK))

    def _use(self, token: str | None) -> str:
        """Keep a token in memory once Hugging Face has accepted it."""
        try:
            require(self._person, Action.USE_JOBS)
            account = sign_in(self._logins, self._person.name, token or "")
        except EngineError as error:
            return error_box(error)
        self._page.services.hardware.forget()
        return small(f"Signed in at Hugging Face as {account}.", role="status")

    def _forget(self) -> str:
        self._logins.forget(self._person.name)
        self._page.services.hardware.forget()
        return small("Token removed. Jobs continue; monitoring resumes when you sign in.", role="status")


class JobsPart:
    """Lays out the choice of the place; lab guests have none, other users sign in at Hugging Face here."""

    def __init__(self, page: Page) -> None:
        self._page = page
        services = page.services
        self._login: JobsLogin | None = None
        self._is_offered = services.person is None or services.logins is not None
        self.cluster: cluster.ClusterPart | None = None
        places = ["local"]
        places += [cluster.WHERE] if cluster.is_offered(services) else []
        places += [_WHERE] if self._is_offered else []
        if len(places) == 1:
            return
        choices = [(PLACES[name], name) for name in places]
        page.form.setting("run.where", choices=choices, elem_id="where")
        if cluster.is_offered(services):
            self.cluster = cluster.ClusterPart(page)
        if not self._is_offered:
            return
        with gr.Column(visible=False, elem_id="jobs") as self.panel:
            if services.person is not None and services.logins is not None:
                self._login = JobsLogin(page, services.person, services.logins)
            with gr.Row():
                field = field_of("jobs.flavor")
                self.flavor = page.form.register("jobs.flavor", Dropdown(
                    [_CHEAPEST], value="", label=f"{field.title} (flavor)", info=field.description, allow_custom_value=True,
                    elem_id="jobs-flavor", min_width=240,
                ))  # fmt: skip
                page.form.setting("jobs.limit_hours", elem_id="jobs-limit", min_width=160)
                page.form.setting("jobs.namespace", elem_id="jobs-namespace", min_width=200)
            self.offer = gr.HTML(elem_id="jobs-offer")
        self.asking = gr.Timer(0.2, active=False)
        hardware = services.hardware
        page.on_draft(self.panel, lambda draft: visible_if(draft.where == _WHERE))
        page.on_draft(self.asking, lambda draft: gr.update(active=draft.where == _WHERE and not hardware.is_known))
        page.on_draft_later(self.offer, self._offer)

    def wire(self) -> None:
        """Connect the events."""
        if self.cluster is not None:
            self.cluster.wire()
        if not self._is_offered:
            return
        ask_event = self.asking.tick(self.ask, None, [self.flavor, self.asking], trigger_mode="once", **SLOW)
        self._page.refresh_after(ask_event)
        if self._login is not None:
            self._login.wire()

    def ask(self) -> Updates:
        """Fetch hardware and prices from Hugging Face; the draft shows the result."""
        flavors: Sequence[Flavor] = ()
        with contextlib.suppress(EngineError):  # stored, and shown with the draft
            flavors = self._page.services.hardware.ask()
        choices = [_CHEAPEST, *((_describe(flavor), flavor.name) for flavor in flavors)]
        return {self.flavor: gr.update(choices=choices), self.asking: gr.update(active=False)}

    def _offer(self, draft: Draft) -> str:
        config, services = draft.config or draft.memory_config, self._page.services
        if config is None or config.run.where != _WHERE:
            return ""
        try:
            flavors = services.hardware.known()
        except EngineError as error:
            if isinstance(error, SignInNeededError):  # shown as the next step, not as an error
                return notice(_SIGN_IN)
            return small(error.what, role="status") if services.hardware.trouble is None else error_box(error)
        if draft.device is None or draft.estimate_error is not None:
            return error_box(draft.estimate_error) if draft.estimate_error is not None else ""
        check = services.checks.find(CheckQuestion.of(config))
        report = check.report if check is not None else None
        if draft.shape is not None and report is not None:
            config = services.place(config.run.where).settled(config, draft.device, draft.shape, report)
        flavor = flavor_named(flavors, config.jobs.flavor) or next(one for one in flavors if one.device == draft.device)
        return render_offer(flavor, config.jobs.limit_hours, draft)


def render_offer(flavor: Flavor, limit_hours: float | None, draft: Draft) -> str:
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


def _describe(flavor: Flavor) -> str:
    return f"{flavor.title} · {gib(flavor.device.total_bytes)} GiB · {dollars(flavor.price_per_hour_usd)}/h"
