"""What a restart would lose, and what a Space that is about to end still saves."""

import os
import threading

from loratory.engine.config.load import config_from_mapping
from loratory.engine.errors import StorageError
from loratory.engine.runs.history.events import StatusData, StepData
from loratory.engine.runs.history.log import EventWriter
from loratory.engine.runs.history.run_history import read_history
from loratory.engine.runs.provenance import read_provenance
from loratory.engine.runs.run import RunFolder, RunState
from loratory.engine.runs.store import RunStore
from tests.invented_runs import a_config
from tests.space.mirrored import a_checkpoint, a_run, age
from tests.supervision.fake_runs import config_for, executions, wait_for_state, wait_for_step
from tests.waiting import PATIENCE_SECONDS, wait_until

RESUMES = {"resume_after_restart": True}


def test_what_a_restart_would_lose_is_shown_to_its_owner_alone(home, spaces):
    run = a_run(home, state="running", steps=10)
    a_checkpoint(run, 4)
    other = a_run(home, "cleo")
    mirror = spaces.begin(home)
    assert mirror.unsaved("cleo").runs == (read_provenance(other.folder).title,)
    mirror.save()
    assert mirror.unsaved("cleo").text == ""
    for path in ("uploads/ann/rows.jsonl", "exports/ann/merged/model.safetensors"):
        (home.root / path).parent.mkdir(parents=True)
        (home.root / path).write_text("{}")
    fresh = a_run(home)

    unsaved = mirror.unsaved("ann")

    title = read_provenance(fresh.folder).title
    assert unsaved.runs == (title,)
    assert unsaved.training[0][1] == 4
    assert unsaved.text == (
        f"A restart of this Space would lose all of “{title}”, the training of “{unsaved.training[0][0]}” since step 4, "
        "1 upload that no run uses and 1 export."
    )
    assert mirror.unsaved("bea").text == ""


def test_uploads_that_a_run_needs_are_saved_with_it(home, spaces):
    uploads = home.root / "uploads"
    for name in ("ann/rows.jsonl", "ann/more/part.jsonl", "ann/other.jsonl", "bea/rows.jsonl"):
        (uploads / name).parent.mkdir(parents=True, exist_ok=True)
        (uploads / name).write_bytes(os.urandom(20_000) + name.encode())  # without a last line's end
    config = config_from_mapping({**a_config().model_dump(mode="json"), "dataset": {
        "source": str(uploads / "ann/rows.jsonl"),
        "mix": {str(uploads / "ann/more"): 1.0, str(uploads / "bea/rows.jsonl"): 1.0},
    }})  # fmt: skip
    RunStore(home, "ann").create(config)
    mirror = spaces.begin(home)
    mirror.save()
    assert mirror.unsaved("ann").uploads == 1

    again = spaces.again()
    for name in ("ann/rows.jsonl", "ann/more/part.jsonl"):
        assert (again.root / "uploads" / name).read_bytes() == (uploads / name).read_bytes()
    assert not (again.root / "uploads" / "ann" / "other.jsonl").exists()
    assert not (again.root / "uploads" / "bea").exists()


def test_a_link_in_a_run_is_not_followed(home, spaces, bucket):
    secret = home.root.parent / "secret"
    secret.write_text("a secret of the machine")
    run = a_run(home)
    (run.folder.adapter / "link.txt").symlink_to(secret)
    (run.folder.path / "linked").symlink_to(home.root.parent)
    spaces.begin(home).save()

    assert not any(b"a secret of the machine" in data for data in bucket.files.values())


def test_a_file_that_changes_while_it_is_sent_is_sent_again(home, spaces, bucket):
    run = a_run(home)
    weights = run.folder.adapter / "adapter_model.safetensors"
    age(home)
    mirror = spaces.begin(home)
    changes = iter([os.urandom(19_000)])

    def change(name):
        data = next(changes, None)
        if data is not None:
            weights.write_bytes(data)

    bucket.after_each = change
    mirror.save()
    mirror.save()

    back = RunStore(spaces.again(), "ann").get(run.id)
    assert (back.folder.adapter / weights.name).read_bytes() == weights.read_bytes()
    assert spaces.restored.left_out == ()


def test_a_space_that_ends_lets_training_save_and_the_next_one_resumes_by_itself(home, spaces, start_supervisor):
    run = RunStore(home, "ann").create(config_for("steps=100000 checkpoint=5", run=RESUMES))
    mirror = spaces.begin(home, poll_seconds=60)  # nothing but the end saves
    mirror.start()
    supervisor = start_supervisor(home)
    wait_for_step(run, 7)

    assert mirror.stop(PATIENCE_SECONDS)
    supervisor.stop()
    last = read_history(run.folder.events).last_step

    again = spaces.again()
    back = RunStore(again, "ann").get(run.id)
    assert read_history(back.folder.events).last_step == last
    assert back.folder.newest_checkpoint_step() == run.folder.newest_checkpoint_step()
    assert len(executions(back)) == 1
    start_supervisor(again)
    wait_until(lambda: read_history(back.folder.events).last_step > last)
    assert len(executions(back)) == 2
    os.kill(back.folder.read_worker().pid, 9)


def test_a_run_that_does_not_ask_for_it_is_interrupted_and_can_be_resumed(home, spaces, start_supervisor):
    run = RunStore(home, "ann").create(config_for("steps=20"))
    with EventWriter(run.folder.events, 1) as events:
        events.append(StatusData(phase="training", message="Training.", total_steps=20))
        events.append(StepData(step=1, epoch=0.1, loss=1.0, learning_rate=1e-4, tokens=9, tokens_per_second=1.0))
    a_checkpoint(run, 1)
    run.folder.write_state(RunState(state="running", attempt=1, started=1.0, device="cpu"))
    spaces.begin(home).save()

    again = spaces.again()
    start_supervisor(again)
    state = wait_for_state(RunStore(again, "ann").get(run.id), "interrupted")
    assert state.reason == "machine_restarted"
    assert state.resumable_step == 1


def test_a_deadline_is_kept_although_the_bucket_hangs(home, spaces, bucket):
    mirror = spaces.begin(home)
    mirror.start()
    hanging, ends = threading.Event(), threading.Event()

    def hang(kind):
        hanging.set()
        ends.wait()

    bucket.refuse = hang
    a_run(home)
    assert hanging.wait(PATIENCE_SECONDS)

    assert not mirror.stop(0.3)
    ends.set()


def test_a_checkpoint_that_is_replaced_while_it_is_sent_holds_up_nothing_else(home, spaces, bucket):
    run = a_run(home, state="running", steps=300)
    other = a_run(home, seed=5)
    weights = a_checkpoint(run, 400) / "adapter" / "adapter_model.safetensors"
    mirror = spaces.begin(home)

    def replace(kind):
        if kind == "put" and weights.exists():
            weights.unlink()

    bucket.refuse = replace
    mirror.save()

    again = spaces.again()
    assert RunStore(again, "ann").get(run.id).folder.events.read_bytes() == run.folder.events.read_bytes()
    assert other.id in RunStore(again, "ann").ids()
    assert spaces.restored.left_out == ()


def test_a_run_that_cannot_be_read_holds_up_nothing_else(home, spaces, monkeypatch):
    odd, run = a_run(home), a_run(home, seed=5)
    read_state = RunFolder.read_state

    def refuse(folder, **options):
        if folder.path.name == odd.id:
            raise StorageError("The state cannot be read.", "Check it.")
        return read_state(folder, **options)

    monkeypatch.setattr(RunFolder, "read_state", refuse)
    mirror = spaces.begin(home)
    mirror.save()
    assert mirror.unsaved("ann").runs == (read_provenance(odd.folder).title,)
    monkeypatch.undo()

    assert RunStore(spaces.again(), "ann").ids() == [run.id]
