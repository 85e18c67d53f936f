import pytest

from engine.errors import ConfigError
from engine.runs.control import change_notes, read_notes
from engine.runs.run import RunFolder


def test_what_is_not_changed_is_kept(tmp_path):
    folder = RunFolder(tmp_path)
    change_notes(folder, name="  Best so far ", tags=("good", " good", "", "short"))
    notes = change_notes(folder, note="Trained on\nthe evening set.")

    assert notes == read_notes(folder)
    assert (notes.name, notes.tags, notes.note) == ("Best so far", ("good", "short"), "Trained on\nthe evening set.")


@pytest.mark.parametrize(
    "changes", [{"name": "x" * 200}, {"name": "a\x00b"}, {"tags": ("y" * 99,)}, {"note": "z" * 20_000}]
)
def test_what_cannot_be_noted_is_refused_and_nothing_changes(tmp_path, changes):
    folder = RunFolder(tmp_path)
    change_notes(folder, name="kept")
    with pytest.raises(ConfigError):
        change_notes(folder, **changes)
    assert read_notes(folder).name == "kept"


def test_torn_notes_are_not_notes(tmp_path):
    folder = RunFolder(tmp_path)
    folder.notes.write_text('{"name": "x')
    assert read_notes(folder).name == ""
