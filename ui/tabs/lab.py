"""Lab, for admins: people, all runs, usage, limits, announcements, maintenance, shared folders, audit log."""

from collections.abc import Callable
from html import escape
from typing import Any, get_args

import gradio as gr

from loratory.engine.accounts.audit import AuditKind
from loratory.engine.accounts.lab import LabSettings
from loratory.engine.accounts.limits import LabLimits, Maintenance
from loratory.engine.accounts.people import ROLES
from loratory.engine.errors import AccountError
from loratory.ui import components as ui
from loratory.ui.backend.lab import Caller, LabAdmin, UnconfirmedError
from loratory.ui.form import component_of_field, number_of, text_of
from loratory.ui.front.account import ACCOUNT
from loratory.ui.gradio_internals import Dropdown, Radio, changed_by_hand, enclosing_tab
from loratory.ui.page import Page
from loratory.ui.tabs.lab_runs import LabModelsPart, LabRunsPart, LabUsagePart
from loratory.ui.views import lab as views
from loratory.ui.views.html import small

_LOG_ROWS = 200
_ANY_KIND = "any"
_CONFIRM = "Type your password to continue."
_NEEDS_NAME = ("role", "reset", "disable", "enable", "remove")


class LabTab:
    """Lays out the Lab tab of an admin; `wire` connects it once the whole page is laid out."""

    def __init__(self, page: Page, admin: LabAdmin) -> None:
        self.page = page
        self._admin = admin
        self._tab = enclosing_tab()
        self._lay_out_people()
        self._runs = LabRunsPart(page, admin)
        self._usage = LabUsagePart(admin)
        self._lay_out_settings()
        with gr.Accordion("Model cache", open=False, elem_id="lab-models-fold"):
            self._models = LabModelsPart(admin)
        with gr.Accordion("Shared models and data", open=False, elem_id="lab-shared-fold"):
            self.shared = gr.HTML(elem_id="lab-shared")
        with gr.Accordion("Audit log", open=False, elem_id="lab-log-fold"):
            with gr.Row():
                hint = "person, run, address …"
                self.search = gr.Textbox(label="Search", placeholder=hint, scale=3, elem_id="lab-log-search")
                self.kind = Dropdown(
                    [_ANY_KIND, *get_args(AuditKind)], value=_ANY_KIND, label="What", scale=1, elem_id="lab-log-kind"
                )
            self.log = gr.HTML(elem_id="lab-log")
        self.timer = gr.Timer(5.0, active=False)

    def _lay_out_people(self) -> None:
        who_gets_in = self._admin.who_gets_in
        has_passwords = not who_gets_in
        actions = "change the role, reset the password, or" if has_passwords else "change the role, or"
        lead = f"Pick a person to {actions} disable or remove the account. {escape(who_gets_in)}".strip()
        gr.HTML(f'<h2>People</h2><p class="lead">{lead}</p>')
        self.people = ui.pick_list(elem_id="lab-people")
        self.name = gr.Textbox("", visible=False)  # of the person who is picked
        with gr.Column(visible=False, elem_id="lab-person") as self.person:
            self.heading = gr.HTML()
            with gr.Row():
                self.role = Radio(list(ROLES), label="Role", scale=2, min_width=240, elem_id="lab-role")
            with gr.Row():
                self.save_role = gr.Button("Change role", scale=0, min_width=160, elem_id="lab-save-role")
                self.reset = gr.Button(
                    "Reset password", scale=0, min_width=160, visible=has_passwords, elem_id="lab-reset"
                )
                self.disable = gr.Button("Disable", variant="stop", scale=0, min_width=160, elem_id="lab-disable")
                self.enable = gr.Button("Enable", scale=0, min_width=160, visible=False, elem_id="lab-enable")
                self.remove = gr.Button("Remove account", scale=0, min_width=160, elem_id="lab-remove")
            self.removal = ui.Confirmation("Remove", "Keep", ("lab-removal", "lab-removal-yes", "lab-removal-no"))
        with gr.Row(visible=has_passwords, elem_id="lab-invite-row"):
            self.invited_role = Radio(
                list(ROLES), value="member", label="New account", scale=0, min_width=380, elem_id="lab-invite-role"
            )
            self.invite = gr.Button("Create invitation", scale=0, min_width=170, elem_id="lab-invite")
        with gr.Column(visible=False, elem_id="lab-confirm") as self.confirmation:
            way = _other_way(self._admin.confirms_with, has_passwords)
            gr.HTML(f'<div class="notice">{_CONFIRM if has_passwords else ""}{way}</div>')
            with gr.Row(visible=has_passwords):
                self.password = gr.Textbox(
                    label="Your password", type="password", scale=2, max_lines=1, elem_id="lab-password"
                )
                self.confirm = gr.Button("Confirm", scale=0, min_width=150, elem_id="lab-confirm-button")
        self.pending = gr.Textbox("", visible=False)  # what waits for the password
        self.result = gr.HTML(js_on_load=ui.script("copy"), elem_id="lab-result")

    def _lay_out_settings(self) -> None:
        with gr.Accordion("Limits", open=False, elem_id="lab-limits"):
            gr.HTML(small("Empty means no limit. Changes apply at the next scheduling pass."))
            self.limits: dict[str, Any] = {}
            fields = list(LabLimits.model_fields.items())
            for first in range(0, len(fields), 2):
                with gr.Row():
                    for name, field in fields[first : first + 2]:
                        self.limits[name] = component_of_field(field, min_width=240, elem_id=f"lab-{name}")
            self.save_limits = gr.Button("Save limits", scale=0, min_width=150, elem_id="lab-save-limits")
        with gr.Accordion("Announcement and maintenance", open=False, elem_id="lab-news"):
            self.announcement = component_of_field(LabSettings.model_fields["announcement"], elem_id="lab-announcement")
            self.announce = gr.Button("Announce", scale=0, min_width=150, elem_id="lab-announce")
            switch = Maintenance.model_fields
            self.maintenance = component_of_field(switch["is_on"], elem_id="lab-maintenance")
            self.maintenance_text = component_of_field(switch["text"], elem_id="lab-maintenance-text")
            self.save_maintenance = gr.Button("Save", scale=0, min_width=150, elem_id="lab-save-maintenance")

    def wire(self) -> None:
        """Connect the events."""
        self.page.pause_timers(self._tab, self.timer)
        settings = [*self.limits.values(), self.announcement, self.maintenance, self.maintenance_text]
        filters = [self.search, self.kind]
        list_outputs = [self.people, *self._runs.outputs, self.shared]
        outputs = [*list_outputs, self.result, *settings]
        open_event = self._tab.select(ui.shown_as_message(self._show), self.name, outputs, **ui.QUICK)
        open_event.then(ui.shown_in_place(self._show_log), filters, self.log, **ui.QUICK)
        self._usage.wire(open_event)
        self._models.wire(open_event, self._log_after)
        self._tab.select(None, None, self.timer, js=ui.TIMER_ON, **ui.QUICK)
        self.timer.tick(ui.shown_as_message(self._runs.show), None, self._runs.outputs, trigger_mode="once", **ui.QUICK)
        self._runs.wire(self._log_after)

        self.removal.wire(self.remove.click, self._removal_question, self.name)
        panel = [
            self.name, self.person, self.heading, self.role, self.disable, self.enable, self.people, self.removal.panel,
        ]  # fmt: skip
        action_outputs = [*panel, self.pending, self.confirmation, self.password, self.result]
        self.people.click(ui.shown_as_message(self._pick), None, [*panel, self.result], **ui.QUICK)
        for button, action in (
            (self.invite, "invite"), (self.save_role, "role"), (self.reset, "reset"), (self.disable, "disable"),
            (self.enable, "enable"), (self.removal.really, "remove"),
        ):  # fmt: skip
            role = self.invited_role if action == "invite" else self.role
            self._log_after(button.click(self._action_handler(action), [self.name, role], action_outputs, **ui.SLOW))
        action_inputs = [self.password, self.pending, self.name]
        for event in (self.confirm.click, self.password.submit):
            self._log_after(event(ui.shown_as_message(self._confirm), action_inputs, action_outputs, **ui.SLOW))

        for button, handler, inputs in (
            (self.save_limits, self._save_limits, list(self.limits.values())),
            (self.announce, self._announce, [self.announcement]),
            (self.save_maintenance, self._set_maintenance, [self.maintenance, self.maintenance_text]),
        ):
            self._log_after(button.click(ui.shown_as_message(handler), inputs, None, **ui.SLOW))
        gr.on(
            [changed_by_hand(part) for part in filters],
            ui.shown_in_place(self._show_log),
            filters,
            self.log,
            **ui.LATEST,
        )

    def _log_after(self, event: Any) -> None:
        event.then(ui.shown_in_place(self._show_log), [self.search, self.kind], self.log, **ui.QUICK)

    def _show(self, name: str) -> ui.Updates:
        settings = self._admin.settings()
        limits = settings.limits
        return {
            self.people: views.render_people(*self._admin.people(), name),
            **self._runs.show(),
            self.shared: views.render_shared(self._admin.shared()),
            self.result: "",
            **{part: _value_of(getattr(limits, field), part) for field, part in self.limits.items()},
            self.announcement: settings.announcement,
            self.maintenance: settings.maintenance.is_on,
            self.maintenance_text: settings.maintenance.text,
        }

    def _removal_question(self, name: str) -> tuple[str, str]:
        return f"Remove {name} permanently?", escape(views.removal_words(name, self._admin.runs_of(name)))

    def _show_log(self, search: Any, kind: Any) -> str:
        log_kind = "" if kind == _ANY_KIND else str(kind)
        return views.render_log(self._admin.log_entries(str(search or "")[:200], log_kind, _LOG_ROWS))

    def _pick(self, event: gr.EventData) -> ui.Updates:
        return {**self._panel(ui.picked_value(event)), self.result: ""}

    def _panel(self, name: str) -> ui.Updates:
        people, invitations = self._admin.people()
        chosen = next((person for person in people if person.name == name), None)
        people_html = views.render_people(people, invitations, name)
        if chosen is None:
            return {self.name: "", self.person: ui.HIDDEN, self.people: people_html, self.removal.panel: ui.HIDDEN}
        return {
            self.name: chosen.name, self.person: ui.visible_if(True), self.heading: f"<h3>{chosen.name}</h3>",
            self.role: chosen.role, self.disable: ui.visible_if(chosen.disabled is None),
            self.enable: ui.visible_if(chosen.disabled is not None), self.people: people_html,
            self.removal.panel: ui.HIDDEN,
        }  # fmt: skip

    def _action_handler(self, action: str) -> Callable[..., ui.Updates]:
        def handler(name: Any, role: Any, request: gr.Request) -> ui.Updates:
            return self._do(f"{action}:{role}", str(name), Caller.from_request(request))

        return ui.shown_as_message(handler)

    def _confirm(self, password: Any, pending: Any, name: Any, request: gr.Request) -> ui.Updates:
        caller = Caller.from_request(request)
        self._admin.confirm(caller, str(password))
        return self._do(str(pending), str(name), caller) if pending else self._calm()

    def _do(self, request_text: str, name: str, caller: Caller) -> ui.Updates:
        """Run a button's action, or ask for the password first; both values are untrusted."""
        action, _, role = request_text.partition(":")
        if action in _NEEDS_NAME and not name:
            raise AccountError("No person is picked.", "Pick one in the list.")
        result = ""
        try:
            if action == "invite":
                result = views.render_link(self._admin.invite(caller, role), f"Link for a new {role}")
            elif action == "reset":
                result = views.render_link(self._admin.reset(caller, name), f"Link for a new password of {name}")
            elif action == "role":
                person = self._admin.set_role(caller, name, role)
                gr.Info(f"{person.name} is {person.role} now.", duration=4)
            elif action == "disable":
                self._admin.disable(caller, name)
            elif action == "enable":
                self._admin.enable(caller, name)
            elif action == "remove":
                self._admin.remove(caller, name)
                gr.Info(f"The account {name} was removed.", duration=4)
        except UnconfirmedError:
            return {
                self.pending: request_text,
                self.confirmation: ui.visible_if(True),
                self.password: "",
                self.result: "",
            }
        return {**self._panel(name), **self._calm(), self.result: result}

    def _calm(self) -> ui.Updates:
        return {self.pending: "", self.confirmation: ui.HIDDEN, self.password: ""}

    def _save_limits(self, request: gr.Request, *values: Any) -> None:
        limits = {name: _parse(name, value) for name, value in zip(self.limits, values, strict=True)}
        self._admin.save_limits(Caller.from_request(request), limits)
        gr.Info("Limits saved.", duration=4)

    def _announce(self, text: Any, request: gr.Request) -> None:
        self._admin.announce(Caller.from_request(request), str(text or ""))
        gr.Info("Announcement saved." if str(text or "").strip() else "Announcement removed.", duration=4)

    def _set_maintenance(self, is_on: Any, text: Any, request: gr.Request) -> None:
        self._admin.set_maintenance(Caller.from_request(request), is_on is True, str(text or ""))
        gr.Info("No run starts until this is switched off." if is_on is True else "Runs start again.", duration=4)


def _other_way(service: str, has_passwords: bool) -> str:
    if not service:
        return ""
    first = " Without a password, confirm" if has_passwords else "Confirm"
    return f'{first} with {escape(service)} on <a href="{ACCOUNT}" target="_blank">your account\'s page</a>, then repeat this.'


def _value_of(value: Any, component: Any) -> Any:
    """Return a limit as its component has it."""
    if not isinstance(component, gr.Textbox):
        return value
    if isinstance(value, dict):
        return ", ".join(f"{name}: {text_of(weight)}" for name, weight in value.items())
    return text_of(value)


def _parse(name: str, text: Any) -> Any:
    """Return a limit from its text; its Field rejects invalid values."""
    if not isinstance(LabLimits.model_fields[name].default, dict):
        return number_of(text)
    pairs = (part.rpartition(":") for part in str(text or "").strip(" {}").split(",") if part.strip())
    return {device.strip(): number_of(weight) for device, _, weight in pairs}
