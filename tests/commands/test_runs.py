import csv
import io
import json
import re

import pytest

from loratory.engine.cli import run_command
from loratory.engine.paths import local_owner
from loratory.engine.runs.control import change_notes, request_stop
from loratory.engine.runs.history.events import EvalData, StepData
from loratory.engine.runs.history.log import EventWriter
from loratory.engine.runs.provenance import Provenance
from loratory.engine.runs.run import RunState
from loratory.engine.runs.store import RunStore
from loratory.engine.supervision.queue import QueueOrder
from loratory.engine.supervision.supervisor import Supervisor
from tests.fake_results import a_test_result, save_tests
from tests.supervision.fake_runs import config_for, continue_worker, fake_settings, wait_for_state, wait_for_step
from tests.waiting import PATIENCE_SECONDS

MODULES = ("loratory.engine.commands.runs", "loratory.engine.commands.configs", "loratory.engine.commands.train")


@pytest.fixture
def store(home):
    return RunStore(home, local_owner())


@pytest.fixture
def server(home):
    supervisor = Supervisor(home, fake_settings())
    supervisor.start()
    yield supervisor
    supervisor.stop()


@pytest.fixture
def loratory(capsys, monkeypatch):
    monkeypatch.setattr("loratory.engine.commands.runs._TRANSITION_SECONDS", PATIENCE_SECONDS)

    def call(*arguments: str) -> tuple[int, str, str]:
        code = run_command(arguments, MODULES)
        output = capsys.readouterr()
        return code, output.out, output.err

    return call


def make_ended_run(store, name="A run", state="completed", steps=2):
    run = store.create(config_for(name))
    with EventWriter(run.folder.events, 1) as events:
        for step in range(1, steps + 1):
            events.append(
                StepData(step=step, epoch=1, loss=1.5, learning_rate=1e-4, tokens=step, tokens_per_second=1.0)
            )
    run.folder.write_state(RunState(state=state, attempt=1, cause="" if state == "completed" else "It broke."))
    return run


def test_runs_are_found_by_method_model_and_tag_and_sorted(store, loratory):
    long, short = make_ended_run(store, "Long", steps=9), make_ended_run(store, "Short", steps=2)
    change_notes(short.folder, tags=("good", "kept"))
    row = json.loads(loratory("runs", "--json")[1])[0]

    def names(*options: str) -> list[str]:
        return [row["name"] for row in json.loads(loratory("runs", "--json", *options)[1])]

    assert names("--method", row["method"], "--model", row["model"]) == ["Short", "Long"]
    assert names("--method", "no-such") == names("--model", "no-such") == []
    assert names("--tag", "good", "--tag", "kept") == ["Short"]
    assert names("--tag", "good", "--tag", "bad") == []
    assert names("--sort", "steps") == ["Long", "Short"]
    assert names("--sort", "steps", "--ascending") == ["Short", "Long"]
    assert loratory("runs", "--tag", "bad")[1] == "No such runs.\n"
    code, _, output = loratory("runs", "--sort", "beauty")
    assert code == 2
    assert "eval_loss" in output
    assert long.folder.path.is_dir()


def test_runs_are_listed_newest_first_and_filtered(store, loratory):
    first, second = make_ended_run(store, "Morning"), make_ended_run(store, "Evening", state="failed")

    code, out, _ = loratory("runs", "--json")
    rows = json.loads(out)
    assert code == 0
    assert [(row["run_id"], row["status"], row["name"]) for row in rows] == [
        (second.id, "failed", "Evening"), (first.id, "completed", "Morning"),
    ]  # fmt: skip
    assert [row["name"] for row in json.loads(loratory("runs", "--state", "failed", "--json")[1])] == ["Evening"]
    assert [row["name"] for row in json.loads(loratory("runs", "morn", "--json")[1])] == ["Morning"]
    text = loratory("runs")[1]
    assert text.splitlines()[0].split()[:3] == ["run", "name", "state"]
    assert "Evening" in text


def test_an_empty_list_reports_what_to_do(loratory, home):
    assert "loratory train quickstart-cpu" in loratory("runs")[1]
    assert json.loads(loratory("runs", "--json")[1]) == []


def test_one_run_is_shown_with_its_figures(store, loratory):
    run = make_ended_run(store, "Evening", state="failed")

    record = json.loads(loratory("show", run.id, "--json")[1])
    assert (record["run_id"], record["status"], record["cause"], record["steps"], record["final_loss"]) == (
        run.id, "failed", "It broke.", 2, 1.5,
    )  # fmt: skip
    text = loratory("show", run.id[-4:])[1]
    assert "Evening" in text
    assert "failed. It broke." in text


def test_test_sets_are_columns_to_sort_by(store, loratory):
    runs = [make_ended_run(store, name) for name in ("Best", "Worst")]
    for run, tuned in zip(runs, (0.75, 0.25), strict=True):
        save_tests(run.folder.path, a_test_result(tuned=tuned))

    code, table, _ = loratory("runs", "--sort", "sums.jsonl (Number)")
    assert code == 0
    assert "sums.jsonl (Number)" in table.splitlines()[0]
    assert table.index("Best") < table.index("0.75") < table.index("Worst") < table.index("0.25")
    assert "score 0.75     sums.jsonl (Number), 95% interval 0." in loratory("show", runs[0].id)[1]
    code, _, error = loratory("runs", "--sort", "sums")
    assert code == 2
    assert "sums.jsonl (Number)" in error


def test_the_steps_and_the_list_come_as_csv(store, loratory):
    run = make_ended_run(store)
    steps = list(csv.DictReader(io.StringIO(loratory("show", run.id, "--csv")[1])))
    runs = list(csv.DictReader(io.StringIO(loratory("runs", "--csv")[1])))

    assert [(row["step"], row["loss"], row["grad_norm"]) for row in steps] == [("1", "1.5", ""), ("2", "1.5", "")]
    assert runs[0]["id"] == run.id


def test_stop_cancel_and_delete_work_while_a_server_runs(store, loratory, server):
    stopped, cancelled = store.create(config_for("steps=30000")), store.create(config_for("steps=30000"))
    wait_for_state(stopped, "running")
    assert loratory("stop", stopped.id)[0] == 0
    wait_for_state(stopped, "stopped")

    wait_for_state(cancelled, "running")
    result = json.loads(loratory("cancel", cancelled.id, "--json")[1])
    assert result["status"] == "stopped"

    code, out, _ = loratory("delete", cancelled.id, "--yes", "--json")
    assert (code, json.loads(out)["status"]) == (0, "deleted")
    assert store.ids() == [stopped.id]


def test_deleting_asks_first_and_does_nothing_where_no_one_answers(store, loratory, monkeypatch):
    run = make_ended_run(store)
    monkeypatch.setattr("sys.stdin", io.StringIO(""))

    code, _, err = loratory("delete", run.id)
    assert code == 1
    assert "--yes" in err
    assert store.ids() == [run.id]


def test_a_stopped_run_is_resumed_and_followed_while_a_server_runs(store, loratory, server):
    run = store.create(config_for("steps=20 hold=2"))
    wait_for_step(run, 2)
    request_stop(run)
    continue_worker(run)
    wait_for_state(run, "stopped")

    code, out, _ = loratory("resume", run.id, "--json")
    assert (code, json.loads(out)["status"], json.loads(out)["steps"]) == (0, "completed", 20)


@pytest.mark.parametrize("command", ["show", "resume"])
def test_a_run_that_is_not_there_is_two_sentences(loratory, home, command):
    code, out, err = loratory(command, "20260101-000000-000-abcd")

    assert (code, out) == (1, "")
    assert err == "Run '20260101-000000-000-abcd' was not found. List the runs with `loratory runs`.\n"


def test_stopping_what_has_ended_reports_it(store, loratory):
    run = make_ended_run(store)
    code, _, err = loratory("stop", run.id)
    assert code == 1
    assert "already completed" in err


@pytest.mark.parametrize("command", [("train",), ("sweep", "--over", "adapter.r=8,16")], ids=["train", "sweep"])
def test_a_run_for_slurm_is_refused_where_no_cluster_was_set_up(home, loratory, tmp_path, command):
    config = tmp_path / "config.yaml"
    config.write_text("model: {id: some/model}\ndataset: {source: data.jsonl}\n")

    code, _, err = loratory(command[0], str(config), *command[1:], "--where", "slurm")

    assert code == 1
    assert "There is no cluster.yaml" in err


def test_a_sweep_is_concluded_by_its_id(store, loratory):
    for rate, loss in (("1e-3", 1.5), ("2e-3", 1.25)):
        origin = Provenance(sweep="abcd1234", swept={"training.learning_rate": rate})
        run = store.create(config_for(rate), origin)
        with EventWriter(run.folder.events, 1) as events:
            events.append(EvalData(step=9, eval_loss=loss, eval_tokens=9, rows=1, seconds=1))
        run.folder.write_state(RunState(state="completed", attempt=1))

    code, output, _ = loratory("sweep", "abcd1234")
    result = json.loads(loratory("sweep", "abcd1234", "--json")[1])

    assert code == 0
    assert output.startswith("Best: learning rate 2e-3: held-out loss 1.250. Second: learning rate 1e-3, 0.250 higher;")
    assert output.endswith("\n  1.500  learning rate 1e-3\n  1.250  learning rate 2e-3\n")
    assert result["best"]["run_ids"] == [run.id]
    assert result["conclusion"] == output.splitlines()[0]
    code, _, err = loratory("sweep", "unknown")
    assert code == 1
    assert "There is no sweep 'unknown'. To start one, add --over" in err


def test_where_a_run_is_resumed_is_one_of_the_places_that_share_its_folder(store, loratory):
    run = make_ended_run(store, state="stopped")

    code, _, err = loratory("resume", run.id, "--where", "jobs")

    assert code == 1
    assert "Choose one of local, slurm" in err


def test_a_run_is_renamed_noted_and_tagged_and_found_by_it(store, loratory):
    run = store.create(config_for("First name"))

    assert loratory("rename", run.id[-4:], "The good one")[0] == 0
    assert loratory("note", run.id, "rank 8 was enough")[0] == 0
    loratory("tag", run.id, "paper", "draft")
    notes = json.loads(loratory("tag", run.id, "draft", "--remove", "--json")[1])

    assert notes == {
        "run_id": run.id, "name": "The good one", "note": "rank 8 was enough", "tags": ["paper"], "star": False,
        "project": "",
    }  # fmt: skip
    assert [row["name"] for row in json.loads(loratory("runs", "paper", "--json")[1])] == ["The good one"]
    assert store.get(run.id).folder.read_config().run.name == "First name"


def test_a_run_gets_a_star_moves_to_a_project_and_is_listed_by_them(store, loratory):
    run, other = (store.create(config_for(name)) for name in ("First", "Second"))

    assert "★ no name of its own" in loratory("star", run.id)[1]
    assert "in project paper" in loratory("project", run.id, "paper")[1]
    for options in (("--star",), ("--project", "paper"), ("--star", "--project", "paper")):
        assert [row["run_id"] for row in json.loads(loratory("runs", *options, "--json")[1])] == [run.id]
    assert "★ First" in loratory("runs")[1]
    assert re.search(r"project +paper", loratory("show", run.id)[1])
    assert "No such runs." in loratory("runs", "--project", "other")[1]

    loratory("star", run.id, "--remove")
    loratory("project", run.id, "")
    assert not any(row["star"] or row["project"] for row in json.loads(loratory("runs", "--json")[1]))
    code, _, err = loratory("project", other.id, "x" * 50)
    assert code == 1
    assert "40" in err


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


def test_a_project_has_test_sets_of_a_file(store, loratory, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sums.jsonl").write_text('{"prompt": "2 + 2?", "answer": "4"}\n')
    (tmp_path / "tests.yaml").write_text("tests:\n  - source: sums.jsonl\n    scorers: [{scorer: number}]\n")
    assert "no test sets" in loratory("project-tests", "Paper")[1]

    assert loratory("project-tests", "Paper", "tests.yaml")[0] == 0
    (test,) = json.loads(loratory("project-tests", "Paper", "--json")[1])["tests"]
    assert test["source"] == str(tmp_path / "sums.jsonl"), "it is found from any folder"
    (tmp_path / "tests.yaml").write_text("tests: [{source: sums.jsonl, scorers: [{scorer: nonsense}]}]")
    code, _, error = loratory("project-tests", "Paper", "tests.yaml")
    assert code == 1
    assert "nonsense" in error
    (tmp_path / "tests.yaml").write_text("evaluation: {tests: []}")
    assert "no test sets" in loratory("project-tests", "Paper", "tests.yaml")[1]
