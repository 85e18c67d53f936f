"""Models that a person of a lab fetches with a token of their own: found by them alone, and the token nowhere."""

import json
import sys
from pathlib import Path

import pytest
from huggingface_hub import constants
from pydantic import SecretStr

from engine.config.run import ModelConfig
from engine.errors import AccountError, ModelAccessError, ModelError, StorageError
from engine.models.folder import ModelPart
from engine.models.hub import fetch_from_hub
from engine.models.inventory_cache import known_inventory, remember_inventory
from engine.models.own import OwnModelJob, list_own_models, remove_own_model
from engine.models.source import resolve_model
from engine.runs.disk import disk_use
from tests.fake_inspector import a_shape
from tests.models.fake_hub import NEXT_COMMIT
from tests.models.own_downloads import PausingHub, require_hidden_token, stop_midway

MODEL = ModelConfig(id="owner/gated")
TOKEN = "hf_CanaryOfAnnThatIsNowhere42"


@pytest.fixture
def hub(tiny_model_folder, tmp_path, monkeypatch):
    fake = PausingHub()
    with fake:
        files = [path for path in tiny_model_folder.iterdir() if path.is_file()]
        fake.repositories[MODEL.id] = {path.name: path.read_bytes() for path in files}
        fake.gated.add(MODEL.id)
        fake.token = TOKEN
        fake.replace_the_real_one(monkeypatch, tmp_path / "shared-cache")
        # Those of this process were read when the library was imported.
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", fake.address)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "shared-cache" / "hub"))
        template = fake.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield fake
        fake.go.set()


def download(home, token: str = TOKEN):
    return OwnModelJob(home, SecretStr(token), MODEL).run()


def test_its_owner_finds_it_without_the_token_and_no_one_else_does(hub, home, tmp_path):
    ann, bea = home.of("ann"), home.of("bea")

    fetched = download(ann)

    hub.tokens.clear()
    source = resolve_model(MODEL, ann, part=ModelPart.WEIGHTS)
    assert Path(source.location).is_relative_to(ann.own_models)
    assert source.hub_id == fetched.hub_id == MODEL.id
    assert hub.tokens == set()
    for other in (bea, home):
        with pytest.raises(ModelAccessError):
            resolve_model(MODEL, other, part=ModelPart.CONFIG)
    assert not any(path.is_file() for path in (tmp_path / "shared-cache").rglob("*"))
    assert disk_use(home, "ann").models == disk_use(home, "ann").total >= fetched.bytes > 0
    assert disk_use(home, "bea").total == 0


def test_what_is_known_of_its_modules_is_known_to_its_owner_alone(hub, home):
    ann, bea = home.of("ann"), home.of("bea")
    download(ann)
    config = resolve_model(MODEL, ann, part=ModelPart.CONFIG)
    values = json.loads((Path(config.location) / "config.json").read_text())
    remember_inventory(values, a_shape(), ann)

    assert known_inventory(MODEL, ann) is not None
    assert known_inventory(MODEL, bea) is None
    assert not home.shared_cache.exists()


def test_another_token_opens_nothing(hub, home):
    ann = home.of("ann")

    with pytest.raises(ModelAccessError):
        download(ann, "hf_another")
    with pytest.raises(ModelAccessError):
        resolve_model(MODEL, ann)


@pytest.mark.parametrize("token", ["", "hf_a b", "hf_a\r\nHost: evil", "hf_ü", "x" * 500])
def test_what_cannot_be_a_token_is_refused_without_being_shown(home, token):
    with pytest.raises(AccountError, match="not a Hugging Face token") as error_info:
        download(home.of("ann"), token)
    assert not token or token not in str(error_info.value)


@pytest.mark.parametrize("name", ["/etc/passwd", "../bea/x", "~/model", "a/b/c", "owner/../x", "x.gguf", ""])
def test_only_an_id_on_the_hub_is_fetched(home, name):
    job = OwnModelJob(home.of("ann"), SecretStr(TOKEN), ModelConfig.model_construct(id=name, revision=None))
    with pytest.raises(ModelError, match="not an id on the Hub"):
        job.run()


def test_a_home_without_accounts_has_no_own_models(home):
    with pytest.raises(AccountError, match="no accounts"):
        download(home)


@pytest.mark.skipif(sys.platform != "linux", reason="reads the environment of processes")
def test_the_token_is_in_no_file_environment_or_command_line(hub, home, tmp_path):
    require_hidden_token(hub, OwnModelJob(home.of("ann"), SecretStr(TOKEN), MODEL), TOKEN, tmp_path)


@pytest.mark.e2e
def test_a_download_can_be_stopped_and_continues_later(hub, home):
    stop_midway(hub, OwnModelJob(home.of("ann"), SecretStr(TOKEN), MODEL))
    assert download(home.of("ann")).bytes > 0


def test_more_than_a_persons_disk_space_is_not_fetched(hub, home, monkeypatch):
    from engine.accounts.accounts import open_database
    from engine.accounts.lab import change_settings
    from engine.accounts.limits import LabLimits

    open_database(home).close()
    change_settings(home, limits=LabLimits(disk_gb_per_person=0.0000001, free_disk_gb=0))
    ann = home.of("ann")

    with pytest.raises(StorageError, match="You use"):
        download(ann)

    assert not list(ann.own_models.rglob("*.safetensors"))


def test_it_can_be_removed_unless_a_run_needs_it(hub, home):
    ann, bea = home.of("ann"), home.of("bea")
    download(ann)

    with pytest.raises(ModelError, match="needed by a run"):
        remove_own_model(ann, MODEL.id, {MODEL.id})
    for name in ("../../bea", "owner", "", "owner/other"):
        with pytest.raises(ModelError, match="not among your own"):
            remove_own_model(ann, name, ())
    with pytest.raises(ModelError, match="not among your own"):
        remove_own_model(bea, MODEL.id, ())
    assert [model.hub_id for model in list_own_models(ann)] == [MODEL.id]

    remove_own_model(ann, MODEL.id, ())

    assert list_own_models(ann) == []
    with pytest.raises(ModelAccessError):
        resolve_model(MODEL, ann)


def test_a_gated_model_that_an_admin_put_there_serves_all_after_its_owner_changed_it(hub, home):
    here = fetch_from_hub(MODEL.id, token=TOKEN)
    hub.commits["main"] = NEXT_COMMIT
    hub.lists_gated = True

    result = resolve_model(MODEL, home.of("bea"))

    assert Path(result.location) == here.folder
