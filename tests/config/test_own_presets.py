"""Presets of one's own: a checked name, a text as it was, and for each person of a lab their own."""

import pytest

from loratory.engine.config.presets import find_preset, list_presets, save_preset
from loratory.engine.errors import ConfigError, StorageError

TEXT = "# mine\ntraining:\n  max_steps: 9  # enough\n"


def own_names(home) -> list[str]:
    return [preset.name for preset in list_presets(home) if preset.is_own]


def test_a_saved_preset_is_listed_after_those_that_ship_with_its_text_unchanged(home):
    save_preset(home, "zeta", TEXT)
    save_preset(home, "alpha-2", TEXT)

    assert [preset.name for preset in list_presets(home)][-2:] == ["alpha-2", "zeta"]
    assert list_presets(home)[:-2] == list_presets()
    preset = find_preset("zeta", home)
    assert preset.path == home.root / "presets" / "zeta.yaml"
    assert preset.path.read_text() == TEXT
    assert preset.mapping() == {"training": {"max_steps": 9}}
    assert preset.load().training.max_steps == 9


@pytest.mark.parametrize(
    "name", ["", " ", ".", "..", "../up", "a/b", "a\\b", "-x", "_x", "a.yaml", "a\n", "a\0", "ä", "<b>", "x" * 41]
)
def test_a_name_that_is_not_one_is_refused_with_a_sentence(home, name):
    with pytest.raises(StorageError, match=r"cannot be named .* Use up to 40 letters, digits"):
        save_preset(home, name, TEXT)
    assert not home.presets.exists()


@pytest.mark.parametrize("name", ["mine", "MINE", "quickstart-cpu", "QuickStart-CPU"])
def test_a_name_in_use_is_refused_and_nothing_is_replaced(home, name):
    save_preset(home, "mine", TEXT)

    with pytest.raises(StorageError, match=f"There is a preset {name} already"):
        save_preset(home, name, "{}\n")
    assert find_preset("mine", home).path.read_text() == TEXT
    assert own_names(home) == ["mine"]


def test_a_hundred_presets_are_enough(home):
    for number in range(100 - len(list_presets())):
        save_preset(home, f"p{number}", TEXT)

    with pytest.raises(StorageError, match="There are 100 presets"):
        save_preset(home, "one-more", TEXT)


def test_each_person_of_a_lab_has_their_own(home):
    ann, bea = home.for_person("ann"), home.for_person("bea")
    save_preset(ann, "mine", TEXT)

    assert find_preset("mine", ann).path == home.root / "presets" / "ann" / "mine.yaml"
    assert own_names(bea) == own_names(home) == []
    with pytest.raises(ConfigError, match="no preset is called 'mine'"):
        find_preset("mine", bea)
    save_preset(bea, "mine", "{}\n")
    assert find_preset("mine", ann).path.read_text() == TEXT


def test_presets_of_guests_are_not_saved(home):
    with pytest.raises(StorageError, match="guests"):
        save_preset(home.for_person("eve", "guest"), "mine", TEXT)


def test_other_files_in_the_folder_are_not_presets(home):
    save_preset(home, "mine", TEXT)
    for name in (".mine.yaml.ab.tmp", "<img>.yaml", "notes.txt", ".hidden.yaml"):
        (home.presets / name).write_text("{}")

    assert own_names(home) == ["mine"]
