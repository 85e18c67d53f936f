"""Paths as people type them."""

from pathlib import Path

import pytest

from loratory.engine.errors import ConfigError
from loratory.engine.paths import LoratoryHome, data_folders, typed_path
from loratory.engine.runs.provenance import find_warm_start


def test_a_tilde_is_a_home_folder_and_the_home_of_no_one_a_name():
    assert typed_path("~/x") == Path.home() / "x"
    assert typed_path("~nobody-of-this-name/x") == Path("~nobody-of-this-name/x")


def test_folders_named_in_the_environment_may_be_no_ones(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LORATORY_DATA", "~nobody-of-this-name/data")
    monkeypatch.setenv("LORATORY_HOME", "~nobody-of-this-name/home")

    assert tmp_path / "~nobody-of-this-name" / "data" in data_folders()
    assert LoratoryHome.from_environment().root == tmp_path / "~nobody-of-this-name" / "home"


@pytest.mark.parametrize("text", ["~nobody-of-this-name/x", "x" * 300, "a\0b"], ids=["nobody", "long", "nul"])
def test_a_warm_start_from_what_cannot_be_there_is_refused_with_a_message(text, tmp_path):
    with pytest.raises(ConfigError, match="holds no adapter"):
        find_warm_start(text, tmp_path)
