"""Paths that a person names on the command line: whatever is typed, it is a path or two sentences."""

from pathlib import Path

import pytest

from loratory.engine.cli import run_command
from loratory.engine.errors import StorageError
from loratory.engine.interface.names import named_path

NOBODY = "~nobody-of-that-name/x"
LONG = "a" * 300
MODULES = tuple(f"loratory.engine.commands.{name}" for name in ("chat", "export", "estimate"))


@pytest.mark.parametrize(
    ("typed", "reason"),
    [
        (NOBODY, r"The path ~nobody-of-that-name/x cannot be used \(Could not determine home directory\)\."),
        (LONG, r"The path a{59}… cannot be used \(File name too long\)\."),
        ("x/" * 5000, "File name too long"),
        ("a\0b", "embedded null"),
        ("a\ud800b", "codec can't encode character"),
        ("circle", "Too many levels of symbolic links"),
    ],
    ids=lambda text: text[:20].encode("ascii", "backslashreplace").decode(),
)
def test_what_can_be_no_path_is_reported_in_two_sentences(tmp_path, monkeypatch, typed, reason):
    monkeypatch.chdir(tmp_path)
    Path("circle").symlink_to("circle")

    with pytest.raises(StorageError, match=reason) as error_info:
        named_path(typed)

    assert error_info.value.fix == "Check its name and permissions."


def test_a_path_is_found_at_home_and_need_not_exist(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "file").touch()

    for name in ("file", "new", "no/folder/here", "file/below"):
        assert named_path(f"~/{name}") == tmp_path / name
        assert named_path(Path("~", name)) == tmp_path / name


@pytest.mark.parametrize(
    "before_and_after",
    [
        (["script"], []),
        (["estimate"], []),
        (["script", "quickstart-cpu", "--out"], []),
        (["chat"], ["--prompt", "hi"]),
        (["serve"], []),
        (["push"], ["owner/name"]),
        (["export"], ["--to", "adapter", "--out", "new"]),
        (["export", ".", "--to", "adapter", "--out"], []),
        (["export", ".", "--to", "gguf", "--out", "new", "--llama-cpp"], []),
    ],
    ids=lambda arguments: " ".join(arguments[0]),
)
def test_no_command_is_surprised_by_a_path(home, tmp_path, monkeypatch, capsys, before_and_after):
    monkeypatch.chdir(tmp_path)
    before, after = before_and_after

    assert run_command([*before, NOBODY, *after], MODULES) == 1

    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith(f"The path {NOBODY}")
    assert output.err.endswith("). Check its name and permissions.\n")
    assert list(tmp_path.iterdir()) == [home.root]
