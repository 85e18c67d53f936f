"""A checkpoint is there whole or not at all, and a damaged one is never offered."""

import pytest

from loratory.engine.runs.checkpoints import MANIFEST, Manifest, list_checkpoints
from loratory.engine.training.checkpoints.folder import (
    replace_folder,
    restore_folder,
    rotate,
    sweep,
    write_checkpoint,
)
from tests.training.worker_runs import newest_intact


def fill_with(content: str):
    def fill(folder):
        (folder / "adapter").mkdir()
        (folder / "adapter" / "weights").write_text(content)
        (folder / "state.json").write_text("{}")

    return fill


def write(folder, step, content="weights", **facts):
    return write_checkpoint(folder, Manifest(step=step, files={}, **facts), fill_with(content))


def steps(folder):
    return [checkpoint.step for checkpoint in list_checkpoints(folder)]


def test_a_written_checkpoint_is_found_intact(tmp_path):
    checkpoint = write(tmp_path, 5, event_seq=17, eval_loss=1.5, best=True)

    result = newest_intact(tmp_path)

    assert result == checkpoint
    assert result.folder == tmp_path / "step-5"
    assert result.manifest.event_seq == 17
    assert result.manifest.best
    assert set(result.manifest.files) == {"adapter/weights", "state.json"}
    assert result.size_bytes == len("weights") + 2


HARMS = {
    "changed": ("adapter/weights", lambda path: path.write_text("weighty")),
    "cut": ("adapter/weights", lambda path: path.write_text("wei")),
    "missing": ("adapter/weights", lambda path: path.unlink()),
    "no manifest": (MANIFEST, lambda path: path.unlink()),
    "torn manifest": (MANIFEST, lambda path: path.write_text(path.read_text()[:50])),
}


@pytest.mark.parametrize(("file", "harm"), HARMS.values(), ids=HARMS)
def test_a_damaged_checkpoint_is_skipped(tmp_path, file, harm):
    write(tmp_path, 5)
    harm(write(tmp_path, 10).folder / file)

    assert newest_intact(tmp_path).step == 5


def test_nothing_half_written_is_left_when_filling_fails(tmp_path):
    def fail(folder):
        (folder / "some").write_text("half")
        raise OSError(28, "No space left on device")

    write(tmp_path, 5)
    with pytest.raises(OSError, match="No space"):
        write_checkpoint(tmp_path, Manifest(step=10, files={}), fail)

    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-5"]
    assert newest_intact(tmp_path).step == 5


def test_an_unfinished_checkpoint_is_not_a_checkpoint(tmp_path):
    """What a power cut leaves: the folder under its other name, however complete."""
    folder = write(tmp_path, 5).folder
    folder.rename(tmp_path / ".unfinished-step-5")

    assert list_checkpoints(tmp_path) == []
    sweep(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_rotation_goes_by_step_and_keeps_the_best(tmp_path):
    for step in (2, 10, 9, 100):  # neither by name nor by time
        write(tmp_path, step)

    rotate(tmp_path, keep=2, best_step=2)
    assert steps(tmp_path) == [2, 10, 100]

    rotate(tmp_path, keep=2, best_step=None)
    assert steps(tmp_path) == [10, 100]


def test_writing_a_step_again_replaces_it(tmp_path):
    write(tmp_path, 5, "old")
    write(tmp_path, 5, "new")

    assert (newest_intact(tmp_path).folder / "adapter" / "weights").read_text() == "new"


def test_the_final_folder_is_replaced_as_a_whole(tmp_path):
    target = tmp_path / "adapter"
    replace_folder(target, lambda folder: (folder / "a").write_text("1"))
    replace_folder(target, lambda folder: (folder / "b").write_text("2"))

    assert [path.name for path in target.iterdir()] == ["b"]
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_a_failed_replacement_leaves_the_earlier_folder(tmp_path):
    target = tmp_path / "adapter"
    replace_folder(target, lambda folder: (folder / "a").write_text("1"))

    def fail(_):
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        replace_folder(target, fail)

    assert (target / "a").read_text() == "1"
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_a_replacement_that_was_cut_off_between_its_renames_is_mended(tmp_path):
    target = tmp_path / "adapter"
    replace_folder(target, lambda folder: (folder / "a").write_text("1"))
    target.rename(tmp_path / ".old-adapter")

    restore_folder(target)

    assert (target / "a").read_text() == "1"
