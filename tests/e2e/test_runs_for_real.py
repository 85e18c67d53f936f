"""The `loratory` command with the real inspector, supervisor and worker, on a model of two layers."""

import json
import os
import subprocess
import sys

import pytest

from loratory.engine.config.load import config_to_yaml
from loratory.engine.paths import local_owner
from loratory.engine.runs.history.run_history import read_history
from loratory.engine.runs.provenance import read_provenance
from loratory.engine.runs.store import RunStore
from tests.e2e.test_scripts_for_real import loratory as loratory_here
from tests.e2e.test_scripts_for_real import run_here
from tests.supervision.fake_runs import config_for, worker_of
from tests.waiting import wait_until

pytestmark = pytest.mark.e2e

WAIT_SECONDS = 1500


@pytest.fixture
def config_file(tmp_path, tiny_model_folder):
    data = tmp_path / "rows.jsonl"
    rows = [{"instruction": f"the number {n}", "output": f"a rank of {n} is a number"} for n in range(60)]
    data.write_text("\n".join(json.dumps(row) for row in rows))
    config = config_for(
        "A tiny run",
        model={"id": str(tiny_model_folder)},
        dataset={"source": str(data)},
        adapter={"r": 4, "lora_alpha": 8},
        training={"max_steps": 8, "max_length": 128, "learning_rate": 1e-3},
    )
    file = tmp_path / "tiny.yaml"
    file.write_text(config_to_yaml(config))
    return file


def start(*arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "loratory.engine.cli", *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ),
    )  # fmt: skip


def loratory(*arguments: object) -> tuple[int, str, str]:
    process = start(*arguments)
    out, err = process.communicate(timeout=WAIT_SECONDS)
    return process.returncode, out, err


def test_a_run_is_trained_shown_and_listed(home, config_file):
    code, out, err = loratory("train", config_file, "--json")
    assert code == 0, err
    result = json.loads(out)
    run = RunStore(home, local_owner()).get(result["run_id"])

    assert (result["status"], result["steps"]) == ("completed", 8)
    assert result["eval_loss"] < result["base_eval_loss"]
    assert result["tokens_per_second"] > 0
    assert result["peak_memory_bytes"] > 10_000_000
    assert (run.folder.adapter / "adapter_model.safetensors").is_file()
    assert read_provenance(run.folder).dataset_fingerprint
    assert read_history(run.folder.events).steps.steps.tolist() == list(range(1, 9))
    worker = run.folder.read_worker()
    assert worker is not None
    assert not worker.is_alive()

    record = json.loads(loratory("show", run.id, "--json")[1])
    (listing,) = json.loads(run_here("runs", "--json")[1])
    assert record["status"] == listing["status"] == "completed"
    assert record["eval_loss"] == listing["eval_loss"] == result["eval_loss"]

    again = json.loads(run_here("train", run.id, "--set", "training.max_steps=2", "--json")[1])
    assert (again["status"], again["steps"]) == ("completed", 2), "a run's config is a configuration"


def test_a_run_outlives_its_command_stops_on_request_and_resumes(home, config_file):
    command = start(
        "train", config_file, "--set", "training.max_steps=100000", "--set", "training.save_steps=20", "--json"
    )
    store = RunStore(home, local_owner())
    wait_until(lambda: bool(store.list()) or command.poll() is not None, WAIT_SECONDS)
    assert command.poll() is None, command.communicate()[1]
    wait_until(lambda: read_history(store.list()[0].folder.events).last_step >= 3, WAIT_SECONDS)
    run = store.list()[0]
    command.kill()
    command.communicate()
    worker = worker_of(run)
    before = read_history(run.folder.events).last_step
    wait_until(lambda: read_history(run.folder.events).last_step > before, WAIT_SECONDS)

    assert run_here("stop", run.id)[0] == 0
    # Of a process with threads, the lock may be free a moment after its end is seen, or before.
    wait_until(lambda: not (run.folder.has_living_worker() or worker.is_alive()), WAIT_SECONDS)
    record = json.loads(run_here("show", run.id, "--json")[1])
    assert record["status"] == "stopped"
    assert record["resumable_step"] == record["steps"]

    command = start("resume", run.id, "--json")
    wait_until(lambda: read_history(run.folder.events).last_step > record["steps"], WAIT_SECONDS)
    assert run_here("cancel", run.id)[0] == 0
    out, _ = command.communicate(timeout=WAIT_SECONDS)
    result = json.loads(out)
    assert result["status"] == "stopped"
    assert result["cause"].startswith("Cancelled after step")
    assert run_here("delete", run.id, "--yes")[0] == 0
    assert store.list() == []


def test_a_version_of_a_set_has_the_losses_of_its_exported_file_bit_by_bit(home, config_file, tmp_path):
    source, file, operations = (tmp_path / f"{name}.jsonl" for name in ("rows", "exported", "operations"))
    masks = {"4": {"3": "[number]"}, "12": {"rank": "[word]"}}
    edit = {"instruction": "the last number", "output": "a rank of 59 is the end"}
    changes = [
        {"kind": "edit", "row": 9, "record": edit},
        {"kind": "exclude", "rows": "2,20-30"},
        {"kind": "replace", "pattern": r"of (\d+)", "is_regex": True, "replacement": r"for \1", "columns": ["output"]},
        {"kind": "mask", "values": masks},
    ]
    operations.write_text("".join(json.dumps(change) + "\n" for change in changes))
    loratory_here("data", "add", source, "--name", "faq")
    version = json.loads(loratory_here("data", "edit", "faq", "--apply", operations, "--json"))["version"]
    operations.write_text(json.dumps({"kind": "exclude", "rows": "40-50"}))
    loratory_here("data", "edit", "faq", "--apply", operations)  # of a later version
    loratory_here("data", "export", f"faq@{version}", "--to", file)
    rows = file.read_text()
    assert rows.count("\n") == 48
    assert all(text in rows for text in ("the last number", "for 59", "rank for [number]", "a [word] for 11"))

    folders, losses = [], []
    for name in (f"set:faq@{version}", file):
        few = ("--set", f"dataset.source={name}", "--set", "training.max_steps=4", "--set", "dataset.eval_fraction=0.1")
        record = json.loads(loratory_here("train", config_file, *few, "--json"))
        folders.append(RunStore(home, local_owner()).get(record["run_id"]).folder)
        history = read_history(folders[-1].events)
        held_out = [(point.step, point.eval_loss) for point in history.evals]
        losses.append((list(zip(history.steps.steps.tolist(), history.steps.losses.tolist(), strict=True)), held_out))

    assert losses[0] == losses[1]
    assert [step for step, _ in losses[0][0]] == [1, 2, 3, 4]
    assert [step for step, _ in losses[0][1]] == [0, 1, 2, 3, 4]
    origins = [read_provenance(folder) for folder in folders]
    assert origins[0].dataset == f"set:faq@{version}"
    assert origins[0].dataset_fingerprint == origins[1].dataset_fingerprint
    history = json.loads(loratory_here("data", "show", "faq", "--json"))["history"]
    versions = {step["version"]: step["runs"] for step in history}
    assert versions.pop(version) == [folders[0].path.name]
    assert not any(versions.values())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("dataset.source=/nowhere/rows.jsonl",), "/nowhere/rows.jsonl"),
        (("model.id=nobody/nothing-of-this-name",), "nobody/nothing-of-this-name"),
        (("training.optim=paged_adamw_8bit", "run.devices=cpu"), "adamw_torch is the nearest"),
    ],
)
def test_what_cannot_work_is_reported_before_anything_is_made(home, config_file, overrides, message):
    code, out, err = run_here("train", config_file, *(part for text in overrides for part in ("--set", text)), "--json")

    assert (code, out) == (1, "")
    assert message in err
    assert "Traceback" not in err
    assert RunStore(home, local_owner()).ids() == []
