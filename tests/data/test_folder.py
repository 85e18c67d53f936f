"""A folder as a dataset, however much lies in it."""

import pytest

from loratory.engine.config.run import DatasetConfig
from loratory.engine.data import source
from loratory.engine.data.source import SourceOptions, data_files, open_source
from loratory.engine.errors import DatasetError


def write_file(path, text="x"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'{{"text": "{text}"}}\n')


def texts(folder, **settings):
    source = open_source(DatasetConfig(source=str(folder), **settings), SourceOptions())
    return [record.value["text"] for record in source.records()]


def test_the_files_of_a_folder_are_read_in_order_and_hidden_ones_never(tmp_path):
    for name in ("b.jsonl", "a.jsonl", "deep/er/c.jsonl", ".hidden.jsonl", ".cache/d.jsonl", "deep/.git/e.jsonl"):
        write_file(tmp_path / name, name)
    (tmp_path / "notes.pdf").write_text("no data")

    assert texts(tmp_path) == ["a.jsonl", "b.jsonl", "deep/er/c.jsonl"]
    assert texts(tmp_path, split="A") == ["a.jsonl"]


def test_links_that_lead_outside_or_in_a_circle_are_left_alone(tmp_path):
    write_file(tmp_path / "data" / "a.jsonl", "a")
    write_file(tmp_path / "outside" / "secret.jsonl", "secret")
    (tmp_path / "data" / "out").symlink_to(tmp_path / "outside")
    (tmp_path / "data" / "out.jsonl").symlink_to(tmp_path / "outside" / "secret.jsonl")
    (tmp_path / "data" / "round").symlink_to(tmp_path / "data")

    assert texts(tmp_path / "data") == ["a"]


def test_a_folder_with_far_too_much_in_it_is_refused_without_walking_through_it(tmp_path, monkeypatch):
    monkeypatch.setattr(source, "MAX_ENTRIES", 20)
    opened = []
    monkeypatch.setattr(source, "open_file", lambda *arguments: opened.append(arguments))
    for number in range(30):
        (tmp_path / "home" / f"{number}").mkdir(parents=True)
        write_file(tmp_path / "home" / f"{number}" / "rows.jsonl")

    with pytest.raises(DatasetError, match="The folder home holds more than 20 files and folders") as refusal:
        open_source(DatasetConfig(source=str(tmp_path / "home")), SourceOptions())

    assert "further down" in refusal.value.fix
    assert opened == []


def test_a_folder_with_too_many_data_files_is_refused_before_one_is_opened(tmp_path, monkeypatch):
    monkeypatch.setattr(source, "MAX_FILES", 3)
    monkeypatch.setattr(source, "open_file", lambda *_: pytest.fail("a file was opened"))
    for number in range(4):
        write_file(tmp_path / f"{number}.jsonl")

    with pytest.raises(DatasetError, match="holds 4 data files; 3 is the most"):
        open_source(DatasetConfig(source=str(tmp_path)), SourceOptions())


BESIDE_DATA = (
    "README.md", "readme.txt", "README_en.md", "LICENSE", "LICENSE.txt", "LICENCE.md", "license-data.md", "CHANGELOG.md",
    "CITATION.txt", "NOTICE.txt", "MODEL_README.md", "dataset_infos.json", "dataset_info.json", "dataset_dict.json",
    "state.json", ".gitattributes", "deep/README.md", "Dataset_Card.md",
)  # fmt: skip


@pytest.mark.parametrize("name", BESIDE_DATA)
def test_what_describes_the_data_is_not_read_where_data_is_next_to_it(tmp_path, name):
    write_file(tmp_path / "corpus.jsonl", "data")
    write_file(tmp_path / name, "a description")

    assert texts(tmp_path) == ["data"]
    assert texts(tmp_path, split="test") == ["data"]


@pytest.mark.parametrize(
    "name", ["readme.jsonl", "README.csv", "readmedata.md", "notices.txt", "security.txt", "statements.json", "a.md"]
)
def test_data_of_similar_names_is_read(tmp_path, name):
    write_file(tmp_path / "corpus.jsonl")
    write_file(tmp_path / name)

    assert data_files(tmp_path, "train") == sorted([tmp_path / "corpus.jsonl", tmp_path / name])


def test_where_there_is_nothing_else_a_readme_is_the_data(tmp_path):
    (tmp_path / "README.md").write_text("One.\n\nTwo.\n")

    assert texts(tmp_path) == ["One.", "Two."]
