"""Name, note, tags, place in the queue and the price of electricity, without a page."""

import json

import pytest

from engine.cli import run_command
from engine.paths import local_owner
from engine.runs.run import RunState
from engine.runs.store import RunStore
from engine.runs.supervision.queue import QueueOrder
from tests.runs.supervision import config_for

MODULES = ("engine.commands.runs",)


@pytest.fixture
def store(home):
    return RunStore(home, local_owner())


@pytest.fixture
def loratory(capsys):
    def call(*arguments: str) -> tuple[int, str, str]:
        code = run_command(arguments, MODULES)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def test_a_run_is_renamed_noted_and_tagged_and_found_by_it(store, loratory):
    run = store.create(config_for("First name"))

    assert loratory("rename", run.id[-4:], "The good one")[0] == 0
    assert loratory("note", run.id, "rank 8 was enough")[0] == 0
    loratory("tag", run.id, "paper", "draft")
    notes = json.loads(loratory("tag", run.id, "draft", "--remove", "--json")[1])

    assert notes == {"run_id": run.id, "name": "The good one", "note": "rank 8 was enough", "tags": ["paper"]}
    assert [row["name"] for row in json.loads(loratory("runs", "paper", "--json")[1])] == ["The good one"]
    assert store.get(run.id).folder.read_config().run.name == "First name"


def test_a_waiting_run_is_moved_and_one_that_does_not_wait_is_not(store, loratory):
    first, second, third = (store.create(config_for(f"Run {number}")) for number in range(3))

    assert json.loads(loratory("move", third.id, "first", "--json")[1])["queue"] == [third.id, first.id, second.id]
    loratory("move", third.id, "down")
    assert QueueOrder(store.home).sort(store.ids()) == [first.id, third.id, second.id]
    assert loratory("move", third.id, "sideways")[0] == 2

    first.folder.write_state(RunState(state="completed"))
    code, _, err = loratory("move", first.id, "first")
    assert code == 1
    assert "completed and does not wait" in err


def test_a_waiting_run_may_start_anyway(store, loratory):
    run = store.create(config_for("Large"))
    assert loratory("start-anyway", run.id)[0] == 0
    assert run.folder.start_anyway_request.exists()

    run.folder.write_state(RunState(state="running"))
    assert "does not wait" in loratory("start-anyway", run.id)[2]


def test_the_price_of_electricity_is_set_shown_and_used(store, loratory):
    assert "no price is set" in loratory("electricity")[1]
    loratory("electricity", "--price", "0.3", "--currency", "EUR")
    set_now = json.loads(loratory("electricity", "--watts", "200", "--json")[1])
    assert set_now == {"price_per_kwh": 0.3, "currency": "EUR", "watts": 200.0}

    run = store.create(config_for("A run"))
    run.folder.write_state(RunState(state="completed", started=0.0, ended=18_000.0))
    assert "1 kWh, EUR 0.30 (at the stated 200 W)" in loratory("show", run.id)[1]
    assert loratory("electricity", "--price", "-4")[0] == 1
