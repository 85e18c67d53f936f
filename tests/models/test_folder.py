"""Local model folders: what is refused, why, and without running or unpickling anything."""

import json
import os
import pickle
import struct
import tempfile
from pathlib import Path

import pytest

from loratory.engine.config.run import ModelConfig
from loratory.engine.errors import ModelError
from loratory.engine.models.folder import ModelPart, check_model_folder, check_tokenizer_files, read_safetensors_header
from loratory.engine.models.source import resolve_model
from tests.models.model_files import LLAMA_CONFIG, model_files, safetensors_bytes

NOBODY = 65534


def write_model(path):
    for name, content in model_files().items():
        (path / name).write_bytes(content)
    return path


@pytest.fixture
def folder(tmp_path):
    """Make a folder that is complete in form; tests take away or spoil one part."""
    path = tmp_path / "mine"
    path.mkdir()
    return write_model(path)


def refusal(folder, part=ModelPart.WEIGHTS):
    with pytest.raises(ModelError) as error_info:
        check_model_folder(folder, "mine", part)
    return error_info.value


def test_a_complete_folder_is_used_where_it_stands(folder, home):
    source = resolve_model(ModelConfig(id=str(folder)), home)

    assert source == (str(folder), "mine", None, None)
    assert not home.models.exists()


def test_a_relative_path_is_made_absolute_for_workers(folder, home, monkeypatch):
    monkeypatch.chdir(folder.parent)

    assert resolve_model(ModelConfig(id="mine"), home).location == str(folder)


def test_parts_that_are_not_needed_may_be_absent(folder):
    (folder / "model.safetensors").unlink()
    check_model_folder(folder, "mine", ModelPart.TOKENIZER)
    assert "has no weights" in refusal(folder).what
    (folder / "tokenizer.json").unlink()
    check_model_folder(folder, "mine", ModelPart.CONFIG)
    assert "has no tokenizer" in refusal(folder, ModelPart.TOKENIZER).what


def test_an_absent_folder_or_configuration_is_reported(folder):
    assert "does not exist" in refusal(folder.parent / "nowhere").what
    (folder / "config.json").unlink()
    assert "no config.json" in refusal(folder).what


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pth", ".ckpt"])
def test_pickled_weights_are_refused_unread(folder, suffix):
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / f"pytorch_model{suffix}")  # opening it would hang

    error = refusal(folder)

    assert "pickle" in error.what
    assert "safetensors" in error.fix


def test_a_pickle_in_an_index_of_safetensors_is_called_what_it_is(folder):
    (folder / "model.safetensors").unlink()
    for shard in ("model-00001-of-00001.bin", "model-00001-of-00001.safetensors"):
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": shard}}))
        for content in (
            pickle.dumps({"w": 1}, 2),
            pickle.dumps({"w": 1}, 5),
            b"PK\x03\x04" + b"\0" * 26 + b"archive/data.pkl",
        ):
            (folder / shard).write_bytes(content)

            error = refusal(folder)

            assert f"{shard} of mine is a pickle file" in error.what
            assert "safetensors" in error.fix


def test_weights_whose_length_begins_like_a_pickle_are_not_a_pickle(folder):
    header = {"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, "__metadata__": {"about": ""}}
    about = "x" * (0x0280 - len(json.dumps(header)))
    (folder / "model.safetensors").write_bytes(safetensors_bytes({**header, "__metadata__": {"about": about}}))
    assert (folder / "model.safetensors").read_bytes()[:2] == b"\x80\x02"

    check_model_folder(folder, "mine")
    assert read_safetensors_header(folder / "model.safetensors", "mine") == (("w", "F32", (2,)),)


def test_pickled_weights_next_to_safetensors_are_ignored(folder):
    os.mkfifo(folder / "pytorch_model.bin")  # to read it would wait for ever
    check_model_folder(folder, "mine")
    (folder / "model.safetensors").unlink()
    assert "only as pickle files (pytorch_model.bin)" in refusal(folder).what


def test_code_of_its_own_is_refused_where_transformers_does_not_know_the_model(folder):
    (folder / "own.py").write_text("raise SystemExit('executed')")
    config = {**LLAMA_CONFIG, "model_type": "own_thing", "auto_map": {"AutoConfig": "own.OwnConfig"}}
    (folder / "config.json").write_text(json.dumps(config))

    error = refusal(folder)

    assert "never runs code" in error.what
    assert "trust_remote_code stays off" in error.what


def test_code_next_to_a_known_architecture_is_left_alone(folder, home):
    (folder / "own.py").write_text("raise SystemExit('executed')")
    config = {**LLAMA_CONFIG, "auto_map": {"AutoConfig": "own.OwnConfig"}}
    (folder / "config.json").write_text(json.dumps(config))

    assert resolve_model(ModelConfig(id=str(folder)), home).location == str(folder)


@pytest.mark.parametrize(
    "wish",
    [
        {"_attn_implementation": "evil/x"},
        {"attn_implementation": "evil/x@main:attention"},
        {"_attn_implementation": "paged|evil/x"},
        {"_attn_implementation": {"": "sdpa", "text_config": "evil/x"}},
        {"text_config": {"_attn_implementation": "evil/x"}},
        {"sub_configs": [{"text_config": {"attn_implementation": "evil/x"}}]},
        {"attribute_map": {"kernel": "_attn_implementation"}, "kernel": "evil/x"},
    ],
    ids=str,
)
def test_an_attention_kernel_from_elsewhere_is_refused_by_its_name(folder, wish):
    (folder / "config.json").write_text(json.dumps({**LLAMA_CONFIG, **wish}))

    error = refusal(folder)

    assert error.what.startswith("The config.json of mine names the attention kernel '")
    assert error.fix == "Remove attn_implementation from that file, or choose another model."


def test_attention_kernels_of_transformers_are_left_alone(folder):
    wishes = {"attn_implementation": "flash_attention_2", "_attn_implementation_autoset": True}
    nested = {"text_config": {"_attn_implementation": None}, "attribute_map": {"n_embd": "hidden_size"}}
    (folder / "config.json").write_text(json.dumps({**LLAMA_CONFIG, **wishes, **nested}))

    check_model_folder(folder, "mine")


@pytest.mark.parametrize(
    "wish",
    [
        {"vocab_file": "/etc/passwd"},
        {"merges_file": "../../etc/passwd"},
        {"spm_file": "C:\\Users\\ann\\x.model"},
        {"fast_tokenizer_files": ["tokenizer.json", "/etc/tokenizer.4.0.json"]},
    ],
    ids=str,
)
def test_a_tokenizers_file_outside_its_folder_is_refused_before_it_is_opened(folder, wish):
    (folder / "tokenizer_config.json").write_text(json.dumps(wish))

    with pytest.raises(ModelError) as error_info:
        check_tokenizer_files(folder, "mine")

    assert error_info.value.what == f"The tokenizer_config.json of mine names a file outside its folder ({min(wish)})."


def test_paths_that_transformers_never_reads_are_left_alone(folder):
    settings = {"tokenizer_file": "/root/.cache/x", "special_tokens_map_file": "/root/x", "vocab_file": "vocab.json"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))

    check_tokenizer_files(folder, "mine")


@pytest.mark.parametrize(
    ("base", "label"),
    [("Qwen/Qwen3-0.6B", " for Qwen/Qwen3-0.6B"), *((base, "") for base in ("/home/alice/secret", 7, None, "x" * 300))],
)
def test_an_adapter_names_its_base_unless_that_is_a_path_or_nonsense(folder, base, label):
    (folder / "config.json").unlink()
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))

    assert refusal(folder).what == f"mine holds an adapter{label}, not a model."


def test_a_missing_shard_is_named(folder):
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model-00001-of-00002.safetensors").write_bytes(safetensors_bytes())

    error = refusal(folder)

    assert "1 of its 2" in error.what
    assert "model-00002-of-00002.safetensors" in error.what


@pytest.mark.parametrize("shard", ["../other/model.safetensors", "/etc/passwd", "a\\b", "sub/x.safetensors"])
def test_an_index_that_points_elsewhere_is_refused(folder, shard):
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))

    assert "out of its folder" in refusal(folder).what


@pytest.mark.parametrize("index", ["{}", '{"weight_map": {}}', '{"weight_map": 3}', "[]", "{"])
def test_a_damaged_index_is_refused(folder, index):
    (folder / "model.safetensors.index.json").write_text(index)

    assert "index.json" in refusal(folder).what


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x01",
        struct.pack("<Q", 2**63) + b"{}",  # a header of eight exabytes
        struct.pack("<Q", 90_000_000) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 5) + b"nojsn",
        safetensors_bytes({"w": {"dtype": "F32"}}),
        safetensors_bytes({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0]}}),
        safetensors_bytes({"w": {"dtype": "F32", "shape": ["x"], "data_offsets": [0, 8]}}),
        safetensors_bytes({"w": 3}),
        safetensors_bytes()[:-1],  # cut off
        safetensors_bytes() + b"more",
    ],
    ids=lambda content: f"{len(content)} bytes",
)
def test_damaged_weights_are_refused_by_their_header(folder, content):
    (folder / "model.safetensors").write_bytes(content)

    error = refusal(folder)

    assert "model.safetensors of mine" in error.what
    assert "again" in error.fix


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b"{", b"\xff\xfe", b"[" * 100_000, b" " * 6_000_000])
def test_a_configuration_that_is_not_a_json_object_is_reported(folder, content):
    (folder / "config.json").write_bytes(content)

    assert "config.json of mine cannot be read" in refusal(folder).what


def test_a_pipe_in_the_place_of_a_file_does_not_hang(folder):
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")

    assert "no config.json" in refusal(folder).what


@pytest.fixture
def an_ordinary_user():
    """Work without root's rights, which read everything."""
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(NOBODY)
    yield
    if is_root:
        os.seteuid(0)


def test_a_folder_that_may_not_be_read_is_reported(an_ordinary_user):
    with tempfile.TemporaryDirectory() as directory:  # tmp_path is closed to other users
        folder = write_model(Path(directory))
        check_model_folder(folder, "mine")
        (folder / "model.safetensors").chmod(0)

        assert "cannot be read (Permission denied)" in refusal(folder).what
