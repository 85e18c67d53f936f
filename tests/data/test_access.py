"""Names and paths that must not hurt."""

import os
from pathlib import Path

import pytest

from loratory.engine.config.run import DatasetConfig
from loratory.engine.data.files.access import DataAccess, open_regular, shown_name
from loratory.engine.data.source import SourceOptions, open_source
from loratory.engine.errors import DatasetError


@pytest.fixture
def uploads(tmp_path):
    folder = tmp_path / "uploads"
    folder.mkdir()
    (folder / "rows.jsonl").write_text('{"text": "inside"}\n')
    (tmp_path / "uploads2").mkdir()
    (tmp_path / "uploads2" / "rows.jsonl").write_text('{"text": "a sibling that shares a prefix"}\n')
    (tmp_path / "secret.jsonl").write_text('{"text": "secret"}\n')
    return folder


def test_a_file_in_an_allowed_folder_is_found(uploads):
    access = DataAccess((uploads,))
    assert access.resolve(str(uploads / "rows.jsonl")) == (uploads / "rows.jsonl").resolve()


@pytest.mark.parametrize(
    "name",
    ["../secret.jsonl", "../uploads2/rows.jsonl", "link.jsonl", "sub/../../secret.jsonl", "/etc/passwd", "/dev/zero"],
)
def test_what_ends_up_outside_is_refused_and_not_described(uploads, name):
    (uploads / "sub").mkdir()
    (uploads / "link.jsonl").symlink_to(uploads.parent / "secret.jsonl")

    with pytest.raises(DatasetError) as refusal:
        DataAccess((uploads,)).resolve(str(uploads / name))

    assert "outside" in str(refusal.value)
    assert "secret" not in refusal.value.what


@pytest.mark.parametrize(
    "name", ["file:///etc/passwd", "http://127.0.0.1/rows.jsonl", "https://a.b/c.csv", "s3://b/k", "hf://x"]
)
def test_addresses_are_never_fetched(name):
    with pytest.raises(DatasetError, match="is a URL"):
        open_source(DatasetConfig(source=name), SourceOptions())


@pytest.mark.parametrize(
    "name",
    ["%2e%2e/rows.jsonl", "x" * 400 + ".jsonl", "a\nb.jsonl", "-rf.jsonl", "\u202egnp.jsonl", "~nobody/x.csv", "a\0b"],
)
def test_strange_names_that_are_not_there_get_one_clean_line(name):
    with pytest.raises(DatasetError) as refusal:
        open_source(DatasetConfig(source=name), SourceOptions())

    message = str(refusal.value)
    assert "\n" not in message
    assert "\u202e" not in message
    assert len(message) < 400


@pytest.mark.parametrize(
    "name", ["-rf.jsonl", "two\nlines.jsonl", "\u202egnp.jsonl", "%2e%2e.jsonl", "a" * 200 + ".jsonl"]
)
def test_strange_names_that_are_there_are_read(tmp_path, name):
    (tmp_path / name).write_text('{"text": "good"}\n')

    source = open_source(DatasetConfig(source=str(tmp_path / name)), SourceOptions())

    assert [record.value for record in source.records()] == [{"text": "good"}]
    assert "\n" not in source.name
    assert "\u202e" not in source.name


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this platform has no FIFOs")
def test_a_fifo_is_refused_without_waiting_for_a_writer(tmp_path):
    os.mkfifo(tmp_path / "rows.jsonl")

    with pytest.raises(DatasetError, match="not a regular file"):
        open_source(DatasetConfig(source=str(tmp_path / "rows.jsonl")), SourceOptions())


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="this platform has no such device")
def test_a_device_is_refused():
    with pytest.raises(DatasetError, match="not a regular file"):
        open_regular(Path("/dev/zero"))


def test_a_loop_of_links_is_refused(tmp_path):
    (tmp_path / "a.jsonl").symlink_to(tmp_path / "b.jsonl")
    (tmp_path / "b.jsonl").symlink_to(tmp_path / "a.jsonl")

    with pytest.raises(DatasetError, match="cannot be opened"):
        open_source(DatasetConfig(source=str(tmp_path / "a.jsonl")), SourceOptions())


def test_shown_names_are_short_and_visible():
    assert shown_name("rows.jsonl") == "rows.jsonl"
    assert len(shown_name("x" * 400)) < 90
    assert shown_name("a\u202eb\n") == "a�b�"


@pytest.mark.parametrize("name", ["sample:../../x", "sample:nothing", "sample:", "sample:LORATORY-FAQ"])
def test_samples_are_looked_up_by_name_alone(name):
    with pytest.raises(DatasetError, match="samples are sample:lab-chats"):
        open_source(DatasetConfig(source=name), SourceOptions())
