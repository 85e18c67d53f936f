"""A repository on the Hub names files of its own and no others; no name of a dataset reaches files here."""

import json

import pytest

from loratory.engine.config.run import DatasetConfig
from loratory.engine.data.files.access import DataAccess
from loratory.engine.data.hub import HubRows, confined_to, require_hub_id, require_own_files
from loratory.engine.data.source import SourceOptions, open_source
from loratory.engine.errors import DatasetError
from tests.data.dataset_hub import DatasetHub

ROWS = [{"instruction": f"Ask {number}", "output": "Answer"} for number in range(3)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


@pytest.fixture(scope="module")
def hub():
    with DatasetHub() as hub:
        yield hub


@pytest.fixture(scope="module")
def secret(tmp_path_factory):
    path = tmp_path_factory.mktemp("secret") / "secret.jsonl"
    path.write_text('{"instruction": "Who", "output": "secret-of-this-machine"}\n')
    return path


def readme(*patterns, **more):
    files = "".join(f"\n  - split: train\n    path: {json.dumps(pattern)}" for pattern in patterns)
    lines = "".join(f"\n  {key}: {json.dumps(value)}" for key, value in more.items())
    data_files = f"\n  data_files:{files}" if patterns else ""
    return f"---\nconfigs:\n- config_name: default{lines}{data_files}\n---\n".encode()


OUTSIDE = {
    "an absolute path": lambda secret, hub: readme(str(secret)),
    "a file address": lambda secret, hub: readme(f"file://{secret}"),
    "another repository": lambda secret, hub: readme("hf://datasets/some/other/rows.jsonl"),
    "an address": lambda secret, hub: readme(f"{hub.address}/datasets/some/other/resolve/main/rows.jsonl"),
    "an archive elsewhere": lambda secret, hub: readme(f"zip://*.jsonl::{hub.address}/private.zip"),
    "a way up": lambda secret, hub: readme("../../some/other/rows.jsonl"),
    "a folder here": lambda secret, hub: readme(data_dir=str(secret.parent)),
}


OWN = [(pattern, streaming) for pattern in (None, "data/*.jsonl") for streaming in (True, False)]


@pytest.fixture(scope="module")
def answers(hub, secret, tmp_path_factory):
    """Read every repository in one process: its rows, or its error."""
    hub.repositories["some/other"] = {"rows.jsonl": LINES}
    requests: dict[object, tuple[str, bool]] = {}
    for number, (pattern, streaming) in enumerate(OWN):
        own_readme = {"README.md": readme(pattern)} if pattern is not None else {}
        hub.repositories[f"own/{number}"] = {"data/rows.jsonl": LINES, **own_readme}
        requests[pattern, streaming] = (f" own/{number} ", streaming)
    for number, (name, make_readme) in enumerate(OUTSIDE.items()):
        hub.repositories[f"outside/{number}"] = {"README.md": make_readme(secret, hub), "rows.jsonl": LINES}
        requests[name] = (f"outside/{number}", True)
    return dict(zip(requests, hub.read(tmp_path_factory.mktemp("work"), list(requests.values())), strict=True))


@pytest.mark.parametrize("own", OWN, ids=str)
def test_a_repository_is_read_from_its_own_files(answers, own):
    assert answers[own].get("rows") == ROWS, answers[own]


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_repository_that_points_outside_itself_is_refused_before_anything_is_asked(answers, hub, secret, name):
    assert "outside its repository" in answers[name].get("what", ""), answers[name]
    assert str(secret.parent) not in json.dumps(answers[name])
    assert not [path for path in hub.paths if "other" in path or "private" in path]


@pytest.mark.parametrize("streaming", [True, False])
def test_a_folder_of_that_name_is_never_taken_for_the_hubs(tmp_path, monkeypatch, streaming):
    (tmp_path / "some" / "one").mkdir(parents=True)
    (tmp_path / "some" / "one" / "rows.jsonl").write_bytes(LINES)
    monkeypatch.chdir(tmp_path)

    # As when the folder was made between the look for one and the library's own.
    with pytest.raises(DatasetError, match="cannot be reached"):
        HubRows(DatasetConfig(source="some/one"), streaming=streaming)


def test_a_folder_of_that_name_outside_the_allowed_ones_is_refused(tmp_path, monkeypatch):
    (tmp_path / "some" / "one").mkdir(parents=True)
    (tmp_path / "some" / "one" / "rows.jsonl").write_bytes(LINES)
    monkeypatch.chdir(tmp_path)

    with pytest.raises(DatasetError, match="in the folders that this page may read"):
        open_source(DatasetConfig(source="some/one"), SourceOptions(access=DataAccess((tmp_path / "uploads",))))


@pytest.mark.parametrize(
    "name",
    "text json csv parquet pandas arrow xml webdataset imagefolder audiofolder cache sql generator Text".split(),
)
def test_the_name_of_a_reader_never_opens_the_working_folder(tmp_path, monkeypatch, name):
    (tmp_path / "rows.jsonl").write_bytes(LINES)
    (tmp_path / "rows.txt").write_text("words of this machine\n")
    monkeypatch.chdir(tmp_path)

    with pytest.raises(DatasetError, match="name of a file format"):
        open_source(DatasetConfig(source=name), SourceOptions(access=DataAccess((tmp_path / "uploads",))))


@pytest.mark.parametrize("name", ["a/../b", "..", "a/b/c", "/a/b", "a//b", "buckets/x", "a/b\n", "é/a", "", "a/.b"])
def test_what_is_not_an_id_is_not_asked_of_the_library(name):
    with pytest.raises(DatasetError, match="not the id of a dataset"):
        require_hub_id(name)


@pytest.mark.parametrize("name", ["squad", "owner/name", "Owner-1/na_me.v2"])
def test_ids_are_ids(name):
    assert require_hub_id(name) == name


def test_files_that_the_library_found_here_are_refused_whatever_led_to_them(secret):
    import datasets

    builder = datasets.load_dataset_builder("json", data_files=str(secret))

    with pytest.raises(DatasetError, match="outside its repository"):
        require_own_files(builder, "some/one")


@pytest.mark.parametrize("reader", ["pandas", "webdataset", "imagefolder"])
def test_readers_that_are_not_plain_are_refused(tmp_path, reader):
    from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES

    module = __import__(_PACKAGED_DATASETS_MODULES[reader][0], fromlist=["*"])
    kind = next(value for name, value in vars(module).items() if name.lower() == reader)

    with pytest.raises(DatasetError, match=f"stored as .*{reader}"):
        require_own_files(kind.__new__(kind), "some/one")


def test_confinement_ends_with_its_block(tmp_path):
    from datasets.data_files import DataFilesDict

    (tmp_path / "rows.jsonl").write_bytes(LINES)
    patterns = {"train": [str(tmp_path / "rows.jsonl")]}

    with confined_to("some/one"), pytest.raises(DatasetError, match="outside"):
        DataFilesDict.from_patterns(patterns, base_path="hf://datasets/some/one@abc")

    assert DataFilesDict.from_patterns(patterns)["train"]
