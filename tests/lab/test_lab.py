"""A supervisor in a lab, with real processes: whose turn it is, limits, and what people may see of each other."""

import time

import pytest

from loratory.engine.accounts.accounts import open_database
from loratory.engine.accounts.lab import LabSettings, save_settings
from loratory.engine.accounts.limits import LabLimits, Maintenance
from loratory.engine.accounts.people import Person
from loratory.engine.errors import AccountError, RunError
from loratory.engine.hardware.cuda import GpuProgram
from loratory.engine.lab.fairness import UrgentSlot
from loratory.engine.lab.queue import QueueBoard
from loratory.engine.runs.control import request_cancel, request_start_anyway
from loratory.engine.runs.run import Run
from loratory.engine.runs.store import RunStore
from loratory.engine.runs.usage import usage_by_week
from loratory.engine.supervision.queue import QueueOrder
from loratory.engine.supervision.supervisor import SupervisorLoop
from tests.supervision.fake_runs import (
    config_for,
    continue_worker,
    cpu,
    executions,
    fake_settings,
    gpu,
    wait_for_state,
    wait_for_step,
)
from tests.waiting import wait_until

ANN, BOB = (Person(name, "member", 0.0) for name in ("ann", "bob"))
ADMIN = Person("root", "admin", 0.0)


@pytest.fixture
def lab(home):
    """Return a function that sets what an admin of a home with accounts decides."""
    open_database(home).close()

    def decide(maintenance: Maintenance = Maintenance(), **limits: object) -> None:  # noqa: B008 - frozen
        values = {"running_per_person": None, "free_disk_gb": 0.0, **limits}
        save_settings(home, LabSettings(limits=LabLimits(**values), maintenance=maintenance))

    decide()
    return decide


@pytest.fixture
def bobs(home):
    return RunStore(home, "bob")


def began(run: Run) -> float:
    start = run.folder.read_state().started
    assert start is not None
    return start


def test_twenty_runs_of_one_against_one_of_another_the_one_starts_next(lab, home, store, bobs, start_supervisor):
    first = store.create(config_for("steps=50000 pace=0.02"))
    many = [store.create(config_for("steps=2 pace=0.01 hold=1")) for _ in range(19)]
    start_supervisor()
    wait_for_step(first, 1)
    bobs_run = bobs.create(config_for("steps=2 pace=0.01"))
    wait_until(lambda: bobs_run.folder.read_state().reason == "device_in_use")
    request_cancel(first)
    wait_until(lambda: many[0].folder.read_state().started is not None)

    assert began(first) < began(bobs_run) < began(many[0])
    for run in many[1:]:  # which wait as long as that one has the device
        request_cancel(run)
    continue_worker(many[0])


def test_without_accounts_runs_start_by_age_whosever_they_are(home, store, bobs, start_supervisor):
    runs = [
        store.create(config_for("steps=2")),
        store.create(config_for("steps=2")),
        bobs.create(config_for("steps=2")),
    ]
    start_supervisor()
    for run in runs:
        wait_for_state(run, "completed")

    assert began(runs[0]) < began(runs[1]) < began(runs[2])
    assert not (home.server / "usage.jsonl").exists()


def test_a_person_moves_only_their_own_runs(lab, home, store, bobs, start_supervisor):
    anns = [store.create(config_for("steps=2")) for _ in range(2)]
    bob = bobs.create(config_for("steps=2"))
    QueueOrder(home.for_person("bob")).move(bob.id, [run.id for run in (*anns, bob)], position=0)
    QueueOrder(home.for_person("ann")).move(anns[1].id, [run.id for run in anns], position=0)
    start_supervisor()
    for run in (*anns, bob):
        wait_for_state(run, "completed")

    assert began(anns[1]) < began(bob) < began(anns[0])


def test_a_run_that_reaches_its_time_limit_saves_and_stops_with_that_reason(lab, store, start_supervisor):
    start_supervisor()
    run = store.create(config_for("steps=50000 pace=0.02"))
    wait_for_step(run, 2)
    lab(longest_run_hours=1 / 3600)
    state = wait_for_state(run, "stopped", "failed")

    assert (state.state, state.reason) == ("stopped", "time_limit")
    assert state.cause.startswith("It reached the maximum run time of this lab (1 s). Stopped after step ")
    assert state.resumable_step is not None
    assert state.started is not None
    assert state.ended is not None
    assert state.ended - state.started >= 1


def test_an_attempt_that_ends_while_no_server_runs_is_counted_once(lab, home, store):
    run = store.create(config_for("steps=4 hold=2"))
    before = SupervisorLoop(home, fake_settings())
    wait_until(lambda: before.tick() or run.folder.read_state().state == "running")
    wait_for_step(run, 2)
    continue_worker(run)
    wait_until(lambda: not run.folder.has_living_worker())

    for _ in range(2):
        later = SupervisorLoop(home, fake_settings())
        wait_until(lambda later=later: later.tick() or run.folder.read_state().is_final)

    (week,) = usage_by_week(home)
    assert (week.owner, week.runs) == ("ann", 1)
    assert len((home.server / "usage.jsonl").read_text().splitlines()) == 1


def test_maintenance_starts_nothing_and_lets_runs_continue(lab, store, bobs, start_supervisor):
    start_supervisor(devices=lambda: (gpu(0), gpu(1)))
    running = store.create(config_for("steps=50000 pace=0.02"))
    wait_for_step(running, 1)
    lab(Maintenance(is_on=True, text="Driver update."))
    run = bobs.create(config_for("steps=2"))
    wait_until(lambda: run.folder.read_state().reason == "maintenance")

    assert run.folder.read_state().cause == "The lab starts no runs at present. Driver update."
    assert running.folder.read_state().state == "running"
    lab()
    wait_for_state(run, "completed")
    request_cancel(running)


def test_a_cap_keeps_a_second_device_for_others(lab, store, bobs, start_supervisor):
    lab(running_per_person=1)
    start_supervisor(devices=lambda: (gpu(0), gpu(1)))
    first, second = (store.create(config_for("steps=50000 pace=0.02")) for _ in range(2))
    wait_until(lambda: second.folder.read_state().reason == "running_cap")
    bob = bobs.create(config_for("steps=2"))
    wait_for_state(bob, "completed")

    assert second.folder.read_state().cause == "1 of your runs is running; the lab allows 1 per person."
    assert executions(second) == []
    request_cancel(second)
    request_cancel(first)


def test_a_gpu_with_other_programs_is_waited_for_and_start_anyway_does_not_wait(lab, store, start_supervisor):
    start_supervisor(devices=lambda: (gpu(0),), programs=lambda _: (GpuProgram(4711, "eve", 3 * 2**30),))
    run = store.create(config_for("steps=2"))
    wait_until(lambda: run.folder.read_state().reason == "other_program")

    text = "GPU 0 is in use outside Loratory (process 4711 of eve, 3.0 GiB)."
    assert run.folder.read_state().cause == text
    request_start_anyway(run)
    wait_for_state(run, "completed")


def test_the_urgent_run_starts_before_all_others_and_the_slot_is_for_one(lab, home, store, bobs, start_supervisor):
    slot = UrgentSlot(home)
    runs = [bobs.create(config_for("steps=2")), *(store.create(config_for("steps=2")) for _ in range(2))]
    with pytest.raises(AccountError):
        slot.put(ANN, runs[2])
    slot.put(ADMIN, runs[2])
    with pytest.raises(RunError, match="urgent already"):
        slot.put(ADMIN, runs[0])
    start_supervisor()
    for run in runs:
        wait_for_state(run, "completed")

    assert began(runs[2]) == min(map(began, runs))
    assert slot.run() is None


def test_everyone_sees_owners_devices_and_turns_but_no_names_or_ids_of_others(lab, home, store, bobs, start_supervisor):
    start_supervisor()
    secret = "steps=50000 pace=0.02 SECRET"
    running, waiting = store.create(config_for(secret)), store.create(config_for(secret))
    wait_for_step(running, 5)
    mine = bobs.create(config_for("steps=2"))
    board = QueueBoard(home, devices=lambda: (cpu(),), programs=lambda _: ())
    wait_until(lambda: len(board.entries(BOB)) == 3)
    wait_until(lambda: mine.folder.read_state().reason == "device_in_use")
    entries = board.entries(BOB)

    assert [(entry.owner, entry.state, entry.device, entry.position) for entry in entries] == [
        ("ann", "running", "cpu", None), ("bob", "queued", "", 1), ("ann", "queued", "", 2),
    ]  # fmt: skip
    assert entries[0].expected_end is not None
    assert entries[0].expected_end > time.time()
    assert [entry.run_id for entry in entries] == ["", mine.id, ""]
    assert entries[1].text == "The CPU is in use by ann for training."
    assert "SECRET" not in repr(entries)
    assert running.id not in repr(entries)
    assert [entry.run_id for entry in board.entries(ADMIN)] == [running.id, mine.id, waiting.id]
    (use,) = board.devices()
    assert (use.device, use.owner, use.purpose) == ("cpu", "ann", "training")
    (attempt,) = board.attempts()
    (week,) = usage_by_week(home, [attempt])
    assert (week.owner, week.runs, week.kwh) == ("ann", 1, None)
    assert week.cpu_hours == pytest.approx(attempt.seconds / 3600, rel=0.01)
    request_cancel(running)
