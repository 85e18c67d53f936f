"""An attempt resumes from what is whole, reports what it skips, and deletes nothing."""

import errno
from pathlib import Path
from typing import Any

import pytest

from loratory.engine.config.training import TrainingConfig
from loratory.engine.data.step_plan import PlanSettings, choose_row_order, row_plan
from loratory.engine.errors import RunError, StorageError
from loratory.engine.runs.checkpoints import MANIFEST, Manifest, list_checkpoints
from loratory.engine.training.checkpoints.folder import (
    find_checkpoint,
    forget_damaged,
    open_checkpoint,
    write_checkpoint,
)


def fill(folder):
    (folder / "adapter").mkdir()
    (folder / "adapter" / "weights").write_text("weights")


@pytest.fixture
def folder(tmp_path):
    for step in (5, 10, 15):
        write_checkpoint(tmp_path, Manifest(step=step, files={}), fill)
    return tmp_path


def flip_a_byte(checkpoint):
    (checkpoint / "adapter" / "weights").write_text("weighty")


def find(folder):
    messages: list[Any] = []
    result = find_checkpoint(folder, messages.append)
    return result, messages


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_newest_checkpoint_is_taken_without_a_warning(folder):
    result, text = find(folder)

    assert (result.step, text) == (15, [])
    assert find(folder / "none yet") == (None, [])


def test_damaged_checkpoints_are_named_and_renamed(folder):
    flip_a_byte(folder / "step-15")
    (folder / "step-10" / MANIFEST).unlink()

    result, text = find(folder)

    assert result.step == 5
    assert text == [
        "step-15 is damaged (the content of adapter/weights has changed) and was skipped; "
        "it was renamed to damaged-step-15.",
        "step-10 is damaged (its manifest is missing or torn) and was skipped; it was renamed to damaged-step-10.",
    ]
    assert names(folder) == ["damaged-step-10", "damaged-step-15", "step-5"]
    assert find(folder)[1] == []
    forget_damaged(folder)
    assert names(folder) == ["step-5"]


def test_a_run_all_of_whose_checkpoints_are_damaged_asks_before_it_restarts(folder):
    for path in list(folder.iterdir()):
        flip_a_byte(path)

    with pytest.raises(RunError) as error_info:
        find(folder)

    assert "step-15, step-10, step-5" in error_info.value.what
    assert "Resume once more to restart" in error_info.value.fix
    assert names(folder) == ["damaged-step-10", "damaged-step-15", "damaged-step-5"]
    assert find(folder) == (None, [])  # resumed once more


@pytest.mark.parametrize("name", ["weights", MANIFEST, "folder"])
@pytest.mark.parametrize("number", [errno.EIO, errno.EMFILE, errno.EACCES])
def test_a_file_that_cannot_be_read_now_is_not_a_damaged_one(folder, monkeypatch, name, number):
    before = names(folder)

    def failing(method):
        def fail(self, *arguments, **options):
            if self.name == name or (name == "folder" and self == folder):
                raise OSError(number, "the disk fails")
            return method(self, *arguments, **options)

        return fail

    monkeypatch.setattr(Path, "open", failing(Path.open))
    monkeypatch.setattr(Path, "read_bytes", failing(Path.read_bytes))
    monkeypatch.setattr(Path, "iterdir", failing(Path.iterdir))
    with pytest.raises(StorageError) as error_info:
        find(folder)
    monkeypatch.undo()

    assert "cannot be read (the disk fails)" in error_info.value.what
    assert "every checkpoint is kept" in error_info.value.fix
    assert names(folder) == before
    assert [checkpoint.step for checkpoint in list_checkpoints(folder)] == [5, 10, 15]


def make_settings(**values):
    training = TrainingConfig(seed=7, per_device_train_batch_size=2, gradient_accumulation_steps=3, max_length=64)
    return PlanSettings(training, **values)


def checkpoint_of(folder, plan):
    write_checkpoint(folder, Manifest(step=5, files={}, row_plan=plan), fill)
    return open_checkpoint(folder / "step-5")


def continue_from(checkpoint, settings, rows="rows"):
    pinned, name = (checkpoint.manifest.row_plan, checkpoint.folder.name) if checkpoint is not None else (None, "")
    return choose_row_order(settings, rows, pinned, name)


@pytest.mark.parametrize("saved_batching", ["joined", "padded"])
@pytest.mark.parametrize("now", ["joined", "padded"])
def test_a_checkpoint_pins_the_order_of_its_rows(tmp_path, saved_batching, now):
    before = make_settings(batching=saved_batching)
    checkpoint = checkpoint_of(tmp_path, row_plan(before, "rows"))

    assert continue_from(checkpoint, make_settings(batching=now)) == before.order
    assert before.order.groups_by_length == (saved_batching == "padded")


def test_other_rows_than_the_checkpoints_are_refused(tmp_path):
    checkpoint = checkpoint_of(tmp_path, row_plan(make_settings(), "rows"))

    with pytest.raises(RunError) as error_info:
        continue_from(checkpoint, make_settings(), rows="other rows")

    assert "are not those of step-5" in error_info.value.what
    assert "start a new run" in error_info.value.fix


def test_a_checkpoint_that_does_not_record_its_rows_is_refused(tmp_path):
    with pytest.raises(RunError, match="are not those of step-5"):
        continue_from(checkpoint_of(tmp_path, None), make_settings())


@pytest.mark.parametrize(("saved_by", "now"), [(2, 1), (1, 2), (4, 2), (1, 3), (3, 1)])
def test_steps_have_as_many_rows_as_those_that_were_counted(tmp_path, saved_by, now):
    before = make_settings(world_size=saved_by)
    checkpoint = checkpoint_of(tmp_path, row_plan(before, "rows"))

    order = continue_from(checkpoint, make_settings(world_size=now))

    assert order.rows_per_step == before.order.rows_per_step == 6 * saved_by


def test_processes_that_cannot_share_a_step_evenly_are_refused(tmp_path):
    with pytest.raises(RunError, match="saved by 1 processes, and 4 cannot share"):
        continue_from(checkpoint_of(tmp_path, row_plan(make_settings(), "rows")), make_settings(world_size=4))


def test_a_process_that_cannot_see_the_checkpoint_reports_it(tmp_path):
    with pytest.raises(StorageError, match="this process cannot see"):
        open_checkpoint(tmp_path / "step-5")
