"""A lab whose server is killed while a run trains and others wait: after a new start, everything is as before."""

import contextlib
import json
import signal

import pytest
from argon2 import PasswordHasher

from loratory.engine.accounts.accounts import Accounts, open_database
from loratory.engine.accounts.audit import AuditLog
from loratory.engine.accounts.lab import audit_log_path, change_settings, read_settings
from loratory.engine.accounts.limits import LabLimits
from loratory.engine.accounts.passwords import Passwords
from loratory.engine.accounts.people import Person
from loratory.engine.config.load import config_from_mapping
from loratory.engine.lab.fairness import UrgentSlot
from loratory.engine.lab.queue import QueueBoard
from loratory.engine.paths import LoratoryHome
from loratory.engine.runs.control import request_cancel
from loratory.engine.runs.history.events import StepData
from loratory.engine.runs.history.log import read_events
from loratory.engine.runs.history.run_history import read_history
from loratory.engine.runs.provenance import Provenance
from loratory.engine.runs.run import Run
from loratory.engine.runs.store import RunStore
from loratory.ui.front.gate import COOKIE
from tests.browser.real_server import LabServer
from tests.tiny_model import make_tiny_model
from tests.waiting import wait_until

pytestmark = pytest.mark.e2e

PATIENCE_SECONDS = 240
PASSWORD = "correct horse battery"
ADMIN = Person("root", "admin", 0.0)
PEOPLE = ("ann", "bea", "cid")
LIMITS = LabLimits(running_per_person=1, waiting_per_person=7, weekly_gpu_hours=12.5, free_disk_gb=0)


def sign_in(server: LabServer, name: str) -> str:
    """Sign in as a person does; returns the cookie."""
    with server.browser() as browser:
        answer = browser.post("/sign-in", data={"name": name, "password": PASSWORD})
        assert answer.status_code == 303, answer.text
        return answer.cookies[COOKIE]


def name_on_account_page(server: LabServer, token: str) -> str:
    """Return whose session a cookie is, as the page shows it; the status where it is not."""
    with server.browser(token) as browser:
        answer = browser.get("/account")
        return next((name for name in PEOPLE if f"Signed in as <b>{name}</b>" in answer.text), str(answer.status_code))


@pytest.fixture
def lab(home, tmp_path):
    """Yield a home with an admin, three members, limits, a tiny model and data for all."""
    database = open_database(home)
    quick = Passwords(PasswordHasher(time_cost=1, memory_cost=8, parallelism=1))
    accounts = Accounts(database, quick)
    for name, role in (("root", "admin"), *((name, "member") for name in PEOPLE)):
        accounts.accept(accounts.invite(role, by="").token, name, PASSWORD)
    change_settings(home, limits=LIMITS.model_dump())
    make_tiny_model(home.shared_models / "tiny")
    home.shared_data.mkdir(parents=True)
    rows = [{"instruction": f"the number {n}", "output": f"a rank of {n} is a number"} for n in range(60)]
    (home.shared_data / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    server = LabServer(home, tmp_path)
    yield server, accounts
    server.close()
    database.close()


def started_by(home: LoratoryHome, name: str, max_steps: int) -> Run:
    config = config_from_mapping(
        {
            "model": {"id": str(home.shared_models / "tiny")},
            "dataset": {"source": str(home.shared_data / "rows.jsonl")},
            "adapter": {"r": 4, "lora_alpha": 8},
            "training": {
                "max_steps": max_steps,
                "max_length": 128,
                "save_steps": 50,
                "early_stopping_patience": None,
            },
            "run": {"name": f"Of {name}", "devices": "cpu"},
        }
    )
    return RunStore(home, name).create(config, Provenance(person=name))


def last_step(run: Run) -> int:
    return read_history(run.folder.events).last_step


def state_of(run: Run) -> str:
    return run.folder.read_state().state


def test_a_killed_server_loses_no_run_turn_account_session_limit_or_log(home, lab):
    server, accounts = lab
    board = QueueBoard(home, devices=tuple, programs=lambda _: ())
    ann = started_by(home, "ann", max_steps=100_000)
    runs = [ann]
    try:
        with server.running() as first:
            cookies = {name: sign_in(server, name) for name in PEOPLE}
            wait_until(lambda: last_step(ann) >= 3 or ann.folder.read_state().is_final, PATIENCE_SECONDS)
            wait_until(lambda: state_of(ann) == "running" or ann.folder.read_state().is_final, PATIENCE_SECONDS)
            assert state_of(ann) == "running", ann.folder.read_state()
            bea, cid = (started_by(home, name, max_steps=100_000) for name in ("bea", "cid"))
            runs += [bea, cid]
            UrgentSlot(home).put(ADMIN, cid, "deadline")
            in_turn = [("ann", ""), ("cid", "Goes first: root made it urgent (deadline)."), ("bea", "")]
            wait_until(
                lambda: [(entry.owner, entry.urgent) for entry in board.entries(ADMIN)] == in_turn, PATIENCE_SECONDS
            )
            people, log = accounts.people(), audit_log_path(home).read_bytes()
            worker = ann.folder.read_worker()
            assert worker is not None
            first.send_signal(signal.SIGKILL)
            first.wait(300)

        step_before = last_step(ann)
        wait_until(lambda: last_step(ann) > step_before, PATIENCE_SECONDS)  # it trains without a server
        with server.running():
            assert {name: name_on_account_page(server, token) for name, token in cookies.items()} == {
                name: name for name in PEOPLE
            }
            assert accounts.people() == people
            assert read_settings(home).limits == LIMITS
            assert audit_log_path(home).read_bytes() == log
            assert [
                entry.person for entry in AuditLog(audit_log_path(home)).entries() if entry.kind == "signed in"
            ] == [*PEOPLE]
            step_before = last_step(ann)
            wait_until(lambda: last_step(ann) > step_before, PATIENCE_SECONDS)
            wait_until(
                lambda: [(entry.owner, entry.urgent) for entry in board.entries(ADMIN)] == in_turn, PATIENCE_SECONDS
            )
            assert (state_of(ann), state_of(bea), state_of(cid)) == ("running", "queued", "queued")
            assert ann.folder.read_worker() == worker, "the same process, at its first attempt"

            request_cancel(ann)
            wait_until(lambda: state_of(cid) != "queued", PATIENCE_SECONDS)
            assert state_of(bea) == "queued"
            assert state_of(ann) == "stopped"
            events = read_events(ann.folder.events).events
            steps = [event.data.step for event in events if isinstance(event.data, StepData)]
            assert steps == list(range(1, len(steps) + 1)), "no step is missing or was done twice"
            for run in (bea, cid):
                request_cancel(run)
            wait_until(lambda: all(run.folder.read_state().is_final for run in runs), PATIENCE_SECONDS)
    finally:
        for run in runs:
            with contextlib.suppress(Exception):
                request_cancel(run)
            wait_until(lambda run=run: not run.folder.has_living_worker(), PATIENCE_SECONDS)
