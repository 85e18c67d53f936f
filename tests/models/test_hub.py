"""Models from the Hub: pinned, cached, refused in words."""

import json
from pathlib import Path

import pytest
from huggingface_hub import constants

from loratory.engine.config.run import ModelConfig
from loratory.engine.errors import HubUnreachableError, ModelError, StorageError
from loratory.engine.models.folder import ModelPart
from loratory.engine.models.hub import cached_snapshot, fetch_from_hub, search_hub
from loratory.engine.models.source import is_hub_id, is_revision, resolve_model
from tests.hub.published import COMMIT, NEXT_COMMIT, PublishedHub
from tests.models.model_files import LLAMA_CONFIG, model_files, safetensors_bytes

MODEL = "org/model"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with PublishedHub() as fake:
        fake.serve_all(monkeypatch)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        fake.repositories[MODEL] = model_files()
        yield fake


def names(folder):
    return {path.name for path in Path(folder).iterdir()}


def test_a_model_is_fetched_and_pinned_to_its_commit(hub, home):
    source = resolve_model(ModelConfig(id=MODEL), home)

    assert (source.hub_id, source.revision, source.name) == (MODEL, COMMIT, MODEL)
    assert names(source.location) == set(model_files())
    assert (Path(source.location) / "model.safetensors").read_bytes() == model_files()["model.safetensors"]


@pytest.mark.parametrize(("revision", "requests"), [(COMMIT, {}), (None, {"info": 1})], ids=["pinned", "branch"])
def test_a_model_is_not_fetched_twice_and_a_pinned_one_not_looked_up(hub, home, revision, requests):
    resolve_model(ModelConfig(id=MODEL), home)
    hub.requests.clear()

    source = resolve_model(ModelConfig(id=MODEL, revision=revision), home)

    assert source.revision == COMMIT
    assert hub.requests == requests


def test_a_branch_that_moved_is_fetched_again(hub, home):
    resolve_model(ModelConfig(id=MODEL), home)
    hub.commits["main"] = NEXT_COMMIT
    hub.repositories[MODEL] = {**model_files(), "generation_config.json": b'{"top_p": 0.5}'}

    source = resolve_model(ModelConfig(id=MODEL), home)

    assert source.revision == NEXT_COMMIT
    assert b"top_p" in (Path(source.location) / "generation_config.json").read_bytes()


@pytest.mark.parametrize("revision", [None, "v1.0", COMMIT])
def test_without_the_hub_the_cache_serves(hub, home, monkeypatch, revision):
    hub.commits["v1.0"] = COMMIT
    first = resolve_model(ModelConfig(id=MODEL, revision=revision), home)
    hub.__exit__()

    assert resolve_model(ModelConfig(id=MODEL, revision=revision), home) == first
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert resolve_model(ModelConfig(id=MODEL, revision=revision), home) == first


def test_without_hub_and_cache_the_error_reports_what_to_do(hub, home, monkeypatch):
    hub.__exit__()
    with pytest.raises(HubUnreachableError, match="cannot be reached"):
        resolve_model(ModelConfig(id=MODEL), home)

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubUnreachableError, match="HF_HUB_OFFLINE"):
        resolve_model(ModelConfig(id=MODEL), home)


def test_estimate_preview_and_training_fetch_what_they_need(hub):
    estimate = fetch_from_hub(MODEL, part=ModelPart.CONFIG)
    assert names(estimate) == {"config.json", "generation_config.json"}

    tokenizer = fetch_from_hub(MODEL, part=ModelPart.TOKENIZER)
    assert names(tokenizer) == set(model_files()) - {"model.safetensors"}
    assert cached_snapshot(MODEL, None, ModelPart.WEIGHTS) is None

    assert "model.safetensors" in names(fetch_from_hub(MODEL))


def test_only_what_loads_is_fetched(hub):
    hub.repositories[MODEL] = {
        **model_files(),
        "pytorch_model.bin": b"pickle",
        "model.fp16.safetensors": safetensors_bytes(),
        "modeling_own.py": b"raise SystemExit",
    }

    assert names(fetch_from_hub(MODEL)) == set(model_files())


def test_a_tokenizer_cut_off_before_its_template_never_looks_complete(hub):
    hub.repositories[MODEL] = {**model_files(), "chat_template.jinja": b"{{ messages }}"}
    hub.lost = {"chat_template.jinja"}
    with pytest.raises(ModelError):
        fetch_from_hub(MODEL, part=ModelPart.TOKENIZER)
    assert cached_snapshot(MODEL, COMMIT, ModelPart.TOKENIZER) is None

    hub.lost = set()
    assert "chat_template.jinja" in names(fetch_from_hub(MODEL, part=ModelPart.TOKENIZER))


def test_named_chat_templates_are_fetched_and_nothing_else_below_the_top(hub):
    template = "additional_chat_templates/tool_use.jinja"
    strays = ["additional_chat_templates/deep/er.jinja", "additional_chat_templates/code.py", "onnx/model.onnx"]
    hub.repositories[MODEL] = {**model_files(), template: b"{{ tools }}", **dict.fromkeys(strays, b"no")}

    folder = fetch_from_hub(MODEL, part=ModelPart.TOKENIZER)

    assert (folder / template).read_bytes() == b"{{ tools }}"
    assert not any((folder / name).exists() for name in strays)
    assert fetch_from_hub(MODEL, part=ModelPart.CONFIG) == folder


def test_a_file_that_another_program_left_out_of_the_cache_is_added(hub):
    folder = fetch_from_hub(MODEL)
    (folder / "tokenizer_config.json").unlink()

    assert "tokenizer_config.json" in names(fetch_from_hub(MODEL))


@pytest.mark.parametrize(
    ("status", "code", "error", "message"),
    [
        (401, "RepoNotFound", ModelError, "no model org/model"),
        (404, "RepoNotFound", ModelError, "no model org/model"),
        (403, "GatedRepo", ModelError, "gated"),
        (401, "GatedRepo", ModelError, "gated"),
        (403, "", ModelError, "does not let your token read org/model"),
        (418, "", ModelError, "HTTP 418"),
        (429, "", HubUnreachableError, "Rate limited"),
        (500, "", HubUnreachableError, "out of order"),
        (503, "", HubUnreachableError, "out of order"),
    ],
)
def test_what_the_hub_refuses_is_reported_with_a_message(hub, monkeypatch, status, code, error, message):
    monkeypatch.setenv("HF_TOKEN", "hf_canarytoken")
    hub.refusals[MODEL] = (status, code)

    with pytest.raises(error, match=message) as error_info:
        fetch_from_hub(MODEL)

    assert hub.tokens == {"Bearer hf_canarytoken"}
    assert "canary" not in str(error_info.value)


def test_a_revision_that_is_not_there_is_named(hub):
    with pytest.raises(ModelError, match="no revision v9"):
        fetch_from_hub(MODEL, "v9")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"adapter_config.json": b"{}"}, "adapter"),
        ({"model.Q4_K_M.gguf": b"GGUF"}, "GGUF files only"),
        ({"README.md": b""}, "no config.json"),
        ({"config.json": json.dumps(LLAMA_CONFIG).encode(), "pytorch_model.bin": b""}, "pickle"),
        ({"config.json": json.dumps(LLAMA_CONFIG).encode()}, "no safetensors"),
    ],
)
def test_what_could_never_be_trained_is_refused_before_a_byte_is_fetched(hub, files, message):
    hub.repositories[MODEL] = files

    with pytest.raises(ModelError, match=message):
        fetch_from_hub(MODEL)
    assert hub.requests == {"info": 1}


def test_a_model_with_its_own_code_is_refused_before_its_weights_are_fetched(hub):
    config = {**LLAMA_CONFIG, "model_type": "own_thing", "auto_map": {"AutoConfig": "own.OwnConfig"}}
    hub.repositories[MODEL] = {**model_files(), "config.json": json.dumps(config).encode()}

    with pytest.raises(ModelError, match="trust_remote_code stays off"):
        fetch_from_hub(MODEL)
    assert "model.safetensors" not in {path.name for path in Path(constants.HF_HUB_CACHE).rglob("*")}


def test_shards_come_by_their_index_and_a_missing_one_is_reported(hub):
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    files = dict(model_files())
    files["model-00001-of-00002.safetensors"] = files.pop("model.safetensors")
    files["model.safetensors.index.json"] = json.dumps(index).encode()
    hub.repositories[MODEL] = files
    with pytest.raises(ModelError, match=r"1 of its 2 weight files.*00002-of-00002"):
        fetch_from_hub(MODEL)

    hub.repositories[MODEL] = {**files, "model-00002-of-00002.safetensors": safetensors_bytes()}
    assert cached_snapshot(MODEL, COMMIT, ModelPart.WEIGHTS) is None
    hub.commits["main"] = NEXT_COMMIT
    assert len(list(fetch_from_hub(MODEL).glob("*.safetensors"))) == 2


def test_a_disk_without_room_is_reported_before_the_download(hub, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 10}))

    with pytest.raises(StorageError, match="disk space"):
        fetch_from_hub(MODEL)


def test_a_near_miss_of_a_catalogue_name_is_suggested(hub, home):
    with pytest.raises(ModelError, match=r"Did you mean Qwen/Qwen3-0\.6B"):
        resolve_model(ModelConfig(id="Qwen/Qwen3-0.6b-"), home)


@pytest.mark.parametrize(
    "name", ["", "-x/y", "a/b/c", "../x", "a/../b", "a/..", "a b", "a/b.git", "x" * 97, "a/%2e%2e", "a\n", "file://x"]
)
def test_what_cannot_be_a_hub_id_is_refused(home, name):
    assert is_hub_id("gpt2")
    assert not is_hub_id(name)
    if name:
        with pytest.raises(ModelError):
            resolve_model(ModelConfig(id=name), home)


@pytest.mark.parametrize("revision", ["../../refs", "/etc/passwd", "a\0b", "-x"])
def test_a_revision_never_becomes_a_path(home, revision):
    assert not is_revision(revision)
    with pytest.raises(ModelError, match="cannot be a revision"):
        resolve_model(ModelConfig(id=MODEL, revision=revision), home)


def test_a_search_tells_what_matters(hub):
    facts = {
        "safetensors": {"total": 596049920},
        "gated": "manual",
        "downloads": 5,
        "tags": ["license:mit", "en"],
        "config": {"model_type": "llama"},
    }
    hub.repositories = {"org/known": {"search.json": json.dumps(facts).encode()}, "org/bare": {"search.json": b"{}"}}

    known, bare = search_hub("known", limit=7)

    assert (known.id, known.parameters, known.license, known.gated) == ("org/known", 596049920, "mit", True)
    assert known.is_supported is True
    assert (bare.parameters, bare.license, bare.gated, bare.is_supported) == (None, None, None, None)
    assert hub.queries[0]["search"] == ["known"]
    assert hub.queries[0]["pipeline_tag"] == ["text-generation"]
    assert hub.queries[0]["limit"] == ["7"]


def test_a_search_without_the_hub_reports_it(hub):
    hub.__exit__()
    with pytest.raises(HubUnreachableError, match="search"):
        search_hub("qwen")
