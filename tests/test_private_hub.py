"""What a person of a lab downloads with a token of their own: found by them alone, and the token nowhere."""

import json
import sys
import threading
from pathlib import Path

import psutil
import pytest
from huggingface_hub import constants
from pydantic import SecretStr

from loratory.engine.config.run import DatasetConfig, ModelConfig
from loratory.engine.data.source import SourceOptions, open_source
from loratory.engine.errors import (
    AccountError,
    DatasetAccessError,
    DatasetError,
    EngineError,
    ModelAccessError,
    ModelError,
    StorageError,
)
from loratory.engine.models.folder import ModelPart
from loratory.engine.models.hub import fetch_from_hub
from loratory.engine.models.inventory_cache import known_inventory, remember_inventory
from loratory.engine.models.source import resolve_model
from loratory.engine.private_hub import PrivateDownload, list_private, remove_private
from loratory.engine.processes.messages import CancelledRequestError
from loratory.engine.runs.disk import disk_use
from loratory.engine.runs.store import RunStore
from loratory.ui.backend.models import OwnDownloads
from tests.fake_inspector import a_shape
from tests.hub.published import NEXT_COMMIT, PublishedHub
from tests.invented_runs import a_config
from tests.waiting import wait_until

MODEL = ModelConfig(id="owner/gated")
DATASET = "owner/gated-rows"
IDS = {"model": MODEL.id, "dataset": DATASET}
REFUSALS = {"model": ModelError, "dataset": DatasetError}
TOKEN = "hf_CanaryOfAnnThatIsNowhere42"
ROW = b'{"instruction": "Say it.", "output": "%d"}\n'

both_kinds = pytest.mark.parametrize("kind", ["model", "dataset"])


class PausingHub(PublishedHub):
    """Holds files back until `go` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.go = threading.Event()
        self.go.set()

    def _file(self, request):
        self.go.wait(300)
        return super()._file(request)


@pytest.fixture
def hub(tiny_model_folder, tmp_path, monkeypatch):
    fake = PausingHub()
    with fake:
        files = [path for path in tiny_model_folder.iterdir() if path.is_file()]
        fake.repositories[MODEL.id] = {path.name: path.read_bytes() for path in files}
        fake.repositories[DATASET] = {
            "README.md": b"---\nconfigs: [{data_files: /etc/passwd}]\n---\n", "script.py": b"raise SystemExit", ".hidden.jsonl": ROW % 9,
            "data/train.jsonl": ROW % 1 + ROW % 2, "data/test.jsonl": ROW % 3,
        }  # fmt: skip
        fake.gated |= {MODEL.id, DATASET}
        fake.token = TOKEN
        cache = tmp_path / "shared-cache"
        monkeypatch.setenv("HF_ENDPOINT", fake.address)
        monkeypatch.setenv("HF_HOME", str(cache))
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH", "HF_HUB_CACHE"):
            monkeypatch.delenv(name, raising=False)
        # Those of this process were read when the library was imported.
        fake.serve_all(monkeypatch)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache / "hub"))
        yield fake
        fake.go.set()


def job(home, kind: str = "model", token: str = TOKEN, name: str = "", revision: str | None = None):
    return PrivateDownload(home, kind, name or IDS[kind], revision, SecretStr(token))


def rows_of(home, folder: Path, split: str):
    config = DatasetConfig(source=str(folder), split=split)
    return [record.value["output"] for record in open_source(config, SourceOptions(home=home)).records() if record]


def test_a_models_owner_finds_it_without_the_token_and_no_one_else_does(hub, home, tmp_path):
    ann, bea = home.for_person("ann"), home.for_person("bea")

    fetched = job(ann).run()

    hub.tokens.clear()
    source = resolve_model(MODEL, ann, part=ModelPart.WEIGHTS)
    assert Path(source.location).is_relative_to(ann.own_models)
    assert source.hub_id == fetched.hub_id == MODEL.id
    assert hub.tokens == set()
    for other in (bea, home):
        with pytest.raises(ModelAccessError):
            resolve_model(MODEL, other, part=ModelPart.CONFIG)
    assert not any(path.is_file() for path in (tmp_path / "shared-cache").rglob("*"))
    assert disk_use(home, "ann").parts["own models"] == disk_use(home, "ann").total >= fetched.bytes > 0
    assert disk_use(home, "bea").total == 0


def test_what_is_known_of_its_modules_is_known_to_its_owner_alone(hub, home):
    ann, bea = home.for_person("ann"), home.for_person("bea")
    job(ann).run()
    config = resolve_model(MODEL, ann, part=ModelPart.CONFIG)
    values = json.loads((Path(config.location) / "config.json").read_text())
    remember_inventory(values, a_shape(), ann)

    assert known_inventory(MODEL, ann) is not None
    assert known_inventory(MODEL, bea) is None
    assert not home.shared_cache.exists()


def test_a_datasets_owner_opens_it_as_an_upload_and_no_one_else_does(hub, home):
    ann, bea = home.for_person("ann"), home.for_person("bea")

    result = job(ann, "dataset").run()

    assert result.folder.is_relative_to(ann.uploads)
    assert {path.name for path in result.folder.rglob("*.*") if path.is_file() and ".cache" not in path.parts} == {
        "train.jsonl", "test.jsonl",
    }  # fmt: skip
    assert (rows_of(ann, result.folder, "train"), rows_of(ann, result.folder, "test")) == (["1", "2"], ["3"])
    assert list_private(ann, "dataset") == [result]
    assert (list_private(bea, "dataset"), list_private(home, "dataset")) == ([], [])
    with pytest.raises(EngineError, match="outside the folders"):
        rows_of(bea, result.folder, "train")
    assert disk_use(home, "ann").parts["uploads"] >= result.bytes > 0

    own = OwnDownloads(RunStore(ann, "ann"), "dataset")
    run = own.runs.create(a_config(dataset__source=str(result.folder / "data")))
    with pytest.raises(DatasetError, match="needed by a run"):
        own.remove(DATASET)
    run.folder.write_state(run.folder.read_state().model_copy(update={"state": "completed"}))
    own.remove(DATASET)
    assert list_private(ann, "dataset") == []


@pytest.mark.e2e
def test_a_new_state_of_a_dataset_replaces_the_old_one_and_the_same_is_not_fetched(hub, home):
    result = job(home.for_person("ann"), "dataset").run()
    fetched = hub.requests["get"]
    job(home.for_person("ann"), "dataset").run()
    assert hub.requests["get"] == fetched

    hub.commits["main"] = NEXT_COMMIT
    hub.repositories[DATASET] = {"data/train.jsonl": ROW % 7}
    job(home.for_person("ann"), "dataset").run()

    assert rows_of(home.for_person("ann"), result.folder, "train") == ["7"]
    assert not (result.folder / "data" / "test.jsonl").exists()


def test_another_token_opens_nothing_and_leaves_nothing(hub, home):
    ann = home.for_person("ann")

    for kind, error in (("model", ModelAccessError), ("dataset", DatasetAccessError)):
        with pytest.raises(error):
            job(ann, kind, "hf_another").run()
        assert list_private(ann, kind) == []
    with pytest.raises(ModelAccessError):
        resolve_model(MODEL, ann)


@pytest.mark.parametrize("token", ["", "hf_a b", "hf_a\r\nHost: evil", "hf_ü", "x" * 500])
def test_what_cannot_be_a_token_is_refused_without_being_shown(home, token):
    with pytest.raises(AccountError, match="not a Hugging Face token") as error_info:
        job(home.for_person("ann"), token=token).run()
    assert not token or token not in str(error_info.value)


@both_kinds
@pytest.mark.parametrize("name", ["/etc/passwd", "../bea/x", "~/model", "a/b/c", "owner/../x", "x.gguf", " "])
def test_only_an_id_on_the_hub_is_fetched(home, kind, name):
    with pytest.raises(REFUSALS[kind], match="not an id on the Hub"):
        job(home.for_person("ann"), kind, name=name).run()
    with pytest.raises(REFUSALS[kind], match="cannot be a revision"):
        job(home.for_person("ann"), kind, revision="../x").run()


def test_a_home_without_accounts_has_none(home):
    with pytest.raises(AccountError, match="no accounts"):
        job(home).run()


@both_kinds
@pytest.mark.skipif(sys.platform != "linux", reason="reads the environment of processes")
def test_the_token_is_in_no_file_environment_or_command_line(hub, home, tmp_path, kind):
    hub.go.clear()
    results = []
    download = job(home.for_person("ann"), kind)
    assert TOKEN not in repr(download)
    thread = threading.Thread(target=lambda: results.append(download.run()))
    thread.start()
    wait_until(lambda: bool(hub.tokens))
    for process in psutil.process_iter():
        for name in ("environ", "cmdline"):
            try:
                assert TOKEN.encode() not in Path(f"/proc/{process.pid}/{name}").read_bytes(), name
            except OSError:
                continue
    hub.go.set()
    thread.join()

    assert results
    assert hub.tokens == {f"Bearer {TOKEN}"}
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or TOKEN.encode() not in path.read_bytes(), path
    assert download.token.get_secret_value() == ""


@pytest.mark.e2e
@both_kinds
def test_a_download_can_be_stopped_and_continues_later(hub, home, kind):
    hub.go.clear()
    results = []
    download = job(home.for_person("ann"), kind)

    def run():
        with pytest.raises(CancelledRequestError):
            download.run()
        results.append(True)

    thread = threading.Thread(target=run)
    thread.start()
    wait_until(lambda: bool(hub.tokens))
    download.stop()
    thread.join(300)
    hub.go.set()

    assert results
    assert job(home.for_person("ann"), kind).run().bytes > 0


def test_more_than_a_persons_disk_space_is_not_fetched(hub, home):
    from loratory.engine.accounts.accounts import open_database
    from loratory.engine.accounts.lab import change_settings
    from loratory.engine.accounts.limits import LabLimits

    open_database(home).close()
    change_settings(home, limits=LabLimits(disk_gb_per_person=0.0000001, free_disk_gb=0))
    ann = home.for_person("ann")

    with pytest.raises(StorageError, match="You use"):
        job(ann).run()

    assert not list(ann.own_models.rglob("*.safetensors"))


def test_a_dataset_without_data_files_is_refused(hub, home):
    hub.repositories[DATASET] = {"script.py": b"", "pictures.zip": b"", "../escape.jsonl": ROW % 1}
    with pytest.raises(DatasetError, match="has 0 data files"):
        job(home.for_person("ann"), "dataset").run()


@both_kinds
def test_only_what_is_a_persons_own_is_removed(hub, home, kind):
    ann, bea = home.for_person("ann"), home.for_person("bea")
    copy = job(ann, kind).run()

    with pytest.raises(REFUSALS[kind], match="needed by a run"):
        remove_private(ann, kind, copy.hub_id, {MODEL.id, str(copy.folder)})
    for own, name in ((ann, "../../bea"), (ann, "owner"), (ann, ""), (ann, "hub"), (bea, copy.hub_id)):
        with pytest.raises(REFUSALS[kind], match="not among your own"):
            remove_private(own, kind, name)
    assert [copy.hub_id for copy in list_private(ann, kind)] == [IDS[kind]]

    remove_private(ann, kind, copy.hub_id)

    assert list_private(ann, kind) == []


def test_a_gated_model_that_an_admin_put_there_serves_all_after_its_owner_changed_it(hub, home):
    here = fetch_from_hub(MODEL.id, token=TOKEN)
    hub.commits["main"] = NEXT_COMMIT
    hub.lists_gated = True

    result = resolve_model(MODEL, home.for_person("bea"))

    assert Path(result.location) == here
