"""What a person is offered is as it was written; lists read a file once and not again until it changes."""

import os

import pytest

from loratory.engine.chat.target import list_checkpoints as talkable
from loratory.engine.files import sha256_of
from loratory.engine.runs.checkpoints import MANIFEST, Manifest, describe_files, offered_checkpoints
from loratory.engine.runs.run import RunFolder, RunState


@pytest.fixture
def run(tmp_path):
    folder = RunFolder(tmp_path / "run")
    for step in (5, 10):
        checkpoint = folder.checkpoint(step)
        (checkpoint / "adapter").mkdir(parents=True)
        (checkpoint / "adapter" / "adapter_model.safetensors").write_bytes(b"weights")
        (checkpoint / "optimizer.safetensors").write_bytes(b"moments")
        manifest = Manifest(step=step, files=describe_files(checkpoint))
        (checkpoint / MANIFEST).write_text(manifest.model_dump_json())
    return folder


def offered_steps(run):
    return [checkpoint.step for checkpoint in offered_checkpoints(run.checkpoints)]


def flip_a_byte(path):
    content = bytearray(path.read_bytes())
    content[3] ^= 1
    before = path.stat().st_mtime_ns
    path.write_bytes(content)
    os.utime(path, ns=(before + 1, before + 1))  # both may be within one tick of the file system's clock


@pytest.fixture
def reads(monkeypatch):
    """Names of the files whose content was read."""
    names = []
    monkeypatch.setattr(
        "loratory.engine.runs.checkpoints.sha256_of", lambda path: (names.append(path.name), sha256_of(path))[1]
    )
    return names


def test_a_flipped_byte_takes_a_checkpoint_out_of_what_is_offered(run):
    assert (run.newest_checkpoint_step(), talkable(run.path)) == (10, ("step-10", "step-5"))

    flip_a_byte(run.checkpoint(10) / "adapter" / "adapter_model.safetensors")

    assert offered_steps(run) == [5]
    assert run.newest_checkpoint_step() == 5
    assert talkable(run.path) == ("step-5",)


def test_what_was_damaged_after_the_run_ended_is_offered_no_more(run):
    run.write_state(RunState(state="interrupted", attempt=1, resumable_step=10))
    assert run.as_offered(run.read_state()).resumable_step == 10

    flip_a_byte(run.checkpoint(10) / "adapter" / "adapter_model.safetensors")

    assert run.as_offered(run.read_state()) == RunState(state="interrupted", attempt=1, resumable_step=5)


def test_whose_optimizer_is_damaged_can_be_talked_to_and_not_resumed(run):
    flip_a_byte(run.checkpoint(10) / "optimizer.safetensors")

    assert run.newest_checkpoint_step() == 5
    assert talkable(run.path) == ("step-10", "step-5")


def test_a_run_with_damaged_checkpoints_alone_offers_none(run):
    for step in (5, 10):
        (run.checkpoint(step) / "optimizer.safetensors").unlink()

    assert run.newest_checkpoint_step() is None


def test_a_file_is_read_for_a_list_once_it_has_changed(run, reads):
    assert offered_steps(run) == [10, 5]
    assert reads == []

    flip_a_byte(run.checkpoint(10) / "optimizer.safetensors")

    assert offered_steps(run) == offered_steps(run) == [5]
    assert reads == ["optimizer.safetensors"]


def test_a_file_of_another_size_is_not_read_at_all(run, reads):
    os.truncate(run.checkpoint(10) / "optimizer.safetensors", 2)
    os.truncate(run.checkpoint(5) / "optimizer.safetensors", 2)

    assert offered_steps(run) == []
    assert "optimizer.safetensors" not in reads
