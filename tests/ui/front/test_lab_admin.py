"""What an admin does is checked at each call, asks for the password where rights change, and is in the audit log."""

import json
from contextlib import suppress
from dataclasses import replace

import pytest

from loratory.engine.accounts.lab import audit_log_path, change_settings, read_notice, read_settings
from loratory.engine.accounts.limits import LabLimits
from loratory.engine.accounts.sessions import CONFIRMED_SECONDS
from loratory.engine.accounts.throttle import ThrottledError
from loratory.engine.errors import AccountError, ConfigError, EngineError
from loratory.engine.runs.run import RunState
from loratory.engine.runs.store import RunStore
from loratory.engine.runs.usage import Attempt
from loratory.ui.backend.lab import Caller, LabAdmin, UnconfirmedError
from loratory.ui.views.lab import (
    removal_words,
    render_log,
    render_people,
    render_queue,
    render_usage,
    usage_csv,
    usage_figure,
)
from tests.accounts.conftest import PASSWORD
from tests.invented_runs import InventedRun, a_config, write_run
from tests.ui.front.lab_admin import MONDAY, audit_entries, waiting_runs

ACTIONS = {
    "people": lambda admin, caller: admin.people(),
    "confirm": lambda admin, caller: admin.confirm(caller, PASSWORD),
    "invite": lambda admin, caller: admin.invite(caller, "admin"),
    "reset": lambda admin, caller: admin.reset(caller, "bea"),
    "set_role": lambda admin, caller: admin.set_role(caller, "bea", "admin"),
    "disable": lambda admin, caller: admin.disable(caller, "bea"),
    "enable": lambda admin, caller: admin.enable(caller, "bea"),
    "queue": lambda admin, caller: admin.queue(),
    "stop": lambda admin, caller: admin.stop(caller, "bea/20261101-000000-000-abcd"),
    "devices": lambda admin, caller: admin.devices(),
    "make_urgent": lambda admin, caller: admin.make_urgent(caller, "bea/20261101-000000-000-abcd", ""),
    "clear_urgent": lambda admin, caller: admin.clear_urgent(caller),
    "models": lambda admin, caller: admin.models(),
    "remove_models": lambda admin, caller: admin.remove_models(caller, ["some/model"]),
    "runs_of": lambda admin, caller: admin.runs_of("bea"),
    "remove": lambda admin, caller: admin.remove(caller, "bea"),
    "usage": lambda admin, caller: admin.usage(),
    "settings": lambda admin, caller: admin.settings(),
    "save_limits": lambda admin, caller: admin.save_limits(caller, {"running_per_person": 5}),
    "announce": lambda admin, caller: admin.announce(caller, "hello"),
    "set_maintenance": lambda admin, caller: admin.set_maintenance(caller, True, ""),
    "shared": lambda admin, caller: admin.shared(),
    "log_entries": lambda admin, caller: admin.log_entries("", "", 10),
}


def test_every_method_is_in_the_table():
    assert set(ACTIONS) == {name for name in vars(LabAdmin) if not name.startswith("_")} - {
        "address",
        "confirms_with",
        "who_gets_in",
    }


@pytest.mark.parametrize("name", ["ann", "bea", "unknown"])
def test_only_an_admin_does_anything(admin, caller, name):
    token = caller.token if name == "unknown" else admin.sessions.begin(admin.accounts.person(name), "", "")
    before = admin.accounts.people(), read_settings(admin.home)

    for action in ACTIONS.values():
        with pytest.raises(AccountError):
            action(replace(admin, name=name), Caller(token, ""))

    assert (admin.accounts.people(), read_settings(admin.home)) == before
    assert audit_entries(admin) == []


def test_rights_end_with_the_role_although_the_page_is_open(admin, caller):
    admin.accounts.set_role("ann", "admin")
    admin.accounts.set_role("root", "member")
    for action in ACTIONS.values():
        with pytest.raises(AccountError):
            action(admin, caller)


@pytest.mark.parametrize("action", ["invite", "reset", "set_role", "enable", "remove"])
def test_a_change_of_rights_asks_for_the_password_after_ten_minutes(admin, caller, clock, action):
    clock.now += CONFIRMED_SECONDS + 1
    with pytest.raises(UnconfirmedError):
        ACTIONS[action](admin, caller)
    with pytest.raises(AccountError, match="wrong"):
        admin.confirm(caller, "wrong " + PASSWORD)
    with pytest.raises(UnconfirmedError):
        ACTIONS[action](admin, caller)

    admin.confirm(caller, PASSWORD)
    ACTIONS[action](admin, caller)


@pytest.mark.parametrize("action", ["invite", "reset"])
def test_where_another_rule_decides_who_gets_in_there_are_no_links(admin, caller, action):
    with pytest.raises(AccountError, match="People that ann lists"):
        ACTIONS[action](replace(admin, who_gets_in="People that ann lists get an account."), caller)
    assert admin.accounts.invitations() == []
    assert admin.accounts.has_password("bea")


@pytest.mark.parametrize("token", ["", "A" * 43])
def test_a_session_of_another_confirms_nothing(admin, token):
    of_ann = admin.sessions.begin(admin.accounts.person("ann"), "", "")
    for session_token in (token, of_ann):
        with pytest.raises(UnconfirmedError):
            admin.invite(Caller(session_token, ""), "admin")


def test_guesses_of_the_password_are_throttled(admin, caller):
    problems = []
    for guess in range(12):
        with pytest.raises(AccountError) as error_info:
            admin.confirm(caller, f"guess number {guess}")
        problems.append(str(error_info.value))
    assert "too many attempts" in problems[-1]


def test_people_outside_cannot_keep_an_admin_from_confirming(admin, caller):
    for name in ("root", "session", *(f"session {number}" for number in range(10))):
        for guess in range(12):
            with suppress(ThrottledError):
                admin.throttle.begin(f"10.1.{guess}.1", name)

    admin.confirm(caller, PASSWORD)
    admin.invite(caller, "member")


def test_what_is_done_is_logged_with_the_address_and_without_the_link(admin, caller):
    link = admin.invite(caller, "guest")
    admin.reset(caller, "bea")
    admin.set_role(caller, "bea", "member")
    admin.disable(caller, "bea")
    admin.enable(caller, "bea")
    admin.announce(caller, "Driver update")
    admin.set_maintenance(caller, True, "until 14:00")

    assert audit_entries(admin) == [
        ("root", "invited", "", "guest", "10.0.0.1"),
        ("root", "invited", "bea", "password", "10.0.0.1"),
        ("root", "role changed", "bea", "member", "10.0.0.1"),
        ("root", "disabled", "bea", "member", "10.0.0.1"),
        ("root", "enabled", "bea", "member", "10.0.0.1"),
        ("root", "announced", "", "Driver update", "10.0.0.1"),
        ("root", "maintenance", "", "on", "10.0.0.1"),
    ]
    assert link.startswith("https://gpu.lab.example/join#")
    assert link.partition("#")[2] not in audit_log_path(admin.home).read_text()
    assert read_notice(admin.home) == "Driver update Maintenance: no runs start. until 14:00"


def test_the_last_admin_stays(admin, caller):
    for change in (
        lambda: admin.set_role(caller, "root", "member"),
        lambda: admin.disable(caller, "root"),
        lambda: admin.remove(caller, "root"),
    ):
        with pytest.raises(AccountError, match="No admin would be left"):
            change()
    assert audit_entries(admin) == []


def test_limits_are_saved_next_to_the_other_settings_and_what_changed_is_logged(admin, caller):
    change_settings(admin.home, announcement="hello", public_url="https://gpu.lab.example")
    admin.save_limits(caller, {"running_per_person": 1, "weekly_gpu_hours": 40.5, "device_weights": {"cuda:0": 2}})

    settings = read_settings(admin.home)
    limits = settings.limits
    assert (settings.announcement, settings.public_url) == ("hello", "https://gpu.lab.example")
    assert (limits.running_per_person, limits.weekly_gpu_hours, limits.device_weights) == (1, 40.5, {"cuda:0": 2})
    ((_, kind, _, detail, _),) = audit_entries(admin)
    assert kind == "limits changed"
    assert "running_per_person: 2 to 1" in detail
    assert "idle_minutes" not in detail


def test_limits_out_of_bounds_are_refused_together(admin, caller):
    with pytest.raises(ConfigError) as error_info:
        admin.save_limits(caller, {"running_per_person": 0, "weekly_gpu_hours": "many", "device_weights": {"tpu": 1}})

    assert {problem.field for problem in error_info.value.problems} == {
        "running_per_person",
        "weekly_gpu_hours",
        "device_weights",
    }
    assert read_settings(admin.home).limits == LabLimits()


@pytest.mark.parametrize("text", ["x" * 301, "a\x1bb"])
def test_an_announcement_that_a_page_cannot_show_is_refused(admin, caller, text):
    with pytest.raises(EngineError):
        admin.announce(caller, text)
    assert read_settings(admin.home).announcement == ""


def test_the_audit_log_is_filtered_newest_first(admin, caller):
    for detail in ("one", "two"):
        admin.announce(caller, detail)
    admin.disable(caller, "bea")
    with audit_log_path(admin.home).open("a") as log:
        log.write("{torn\n")

    assert [entry.kind for entry in admin.log_entries("", "", 2)] == ["disabled", "announced"]
    assert [entry.detail for entry in admin.log_entries("ROOT two", "announced", 10)] == ["two"]
    assert admin.log_entries("nothing like it", "", 10) == []


def test_usage_is_summed_by_person_and_week(admin):
    admin.home.server.mkdir(exist_ok=True)
    facts = {"attempt": 1, "began": MONDAY, "ended": MONDAY + 3600, "joules": 3.6e6}
    devices = [("ann", "cuda:0"), ("ann", "cuda:0, cuda:1"), ("bea", "cpu")]
    attempts = [
        Attempt(owner=owner, run_id=f"{owner}{number}", device=device, **facts)
        for number, (owner, device) in enumerate(devices)
    ]
    (admin.home.server / "usage.jsonl").write_text("".join(f"{attempt.model_dump_json()}\n" for attempt in attempts))
    for name, bytes_ in (("ann", 4000), ("root", 250)):
        folder = admin.home.for_person(name).uploads
        folder.mkdir(parents=True)
        (folder / "rows.jsonl").write_bytes(bytes(bytes_))
    usage = admin.usage()

    table, lines = render_usage(usage), usage_csv(usage).splitlines()
    assert "3.0" in table
    assert "2026-W39,ann,3.0000,0.0000,2.0000,2,4000" in lines
    assert "2026-W39,bea,0.0000,1.0000,1.0000,1," in lines
    assert "2026-W39,root,0.0000,0.0000,,0,250" in lines, "who has files and no runs is listed as well"
    figure = json.loads(usage_figure(usage))
    assert [(trace["name"], trace["y"]) for trace in figure["data"]] == [("ann", [3.0])]
    assert "GPU hours" in figure["label"]


def test_a_removed_account_is_signed_out_and_its_runs_and_name_stay_taken(admin, caller, make_person):
    (waiting,) = waiting_runs(admin, "ann")
    write_run(RunStore(admin.home, "ann"), a_config(), InventedRun())
    active = write_run(RunStore(admin.home, "ann"), a_config(), InventedRun(state="queued"))
    active.folder.write_state(RunState(state="running", attempt=1, changed=1.0, started=1.0))
    token = admin.sessions.begin(admin.accounts.person("ann"), "", "")
    text = removal_words("ann", admin.runs_of("ann"))
    admin.remove(caller, "ann")

    assert "Kept: 3 runs, which admins can read. 1 run at work and 1 waiting continue" in text
    assert admin.sessions.find(token) is None
    assert [person.name for person in admin.people()[0]] == ["bea", "root"]
    assert waiting.folder.read_state().state == "queued"
    assert audit_entries(admin) == [("root", "removed", "ann", "member", "10.0.0.1")]
    with pytest.raises(AccountError, match="taken"):
        make_person("ann")


def test_what_is_shown_is_not_markup(admin, caller):
    entry = admin.audit
    entry.write("", "sign-in failed", "<b>x</b>", "<i>y</i>", "<u>z</u>")
    people, invitations = admin.people()
    html = (
        render_log(admin.log_entries("", "", 10))
        + render_people(people, invitations, "")
        + render_queue(admin.queue(), "root")
    )
    for tag in ("<b>x", "<i>y", "<u>z"):
        assert tag not in html
