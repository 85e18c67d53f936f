"""What may leave this machine, and what is found before it does."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from loratory.engine.errors import PushError
from loratory.engine.export.folder import intended_files, is_intended, refuse_private_content
from tests.export.push_folders import ADAPTER_FILES, adapter_folder, merged_folder

TOKEN = "hf_" + "a1B2" * 8


def check(folder: Path, *, private_folders: tuple[Path, ...] = (), token: str | None = TOKEN) -> None:
    kind = "adapter" if (folder / "adapter_config.json").exists() else "merged"
    refuse_private_content(folder, [file.name for file in intended_files(folder, kind)[0]], private_folders, token)


NOT_PART_OF_AN_EXPORT = """
optimizer.pt scheduler.pt rng_state.pth pytorch_model.bin adapter_model.bin training_args.bin trainer_state.json
MANIFEST.json events.jsonl config.yaml worker.log .env token nested/adapter_model.safetensors model-1-of-2.safetensors
modeling_custom.py additional_chat_templates/deep/er.jinja additional_chat_templates/../secret.jinja
additional_chat_templates/code.py other/tool_use.jinja
"""


@pytest.mark.parametrize("name", NOT_PART_OF_AN_EXPORT.split())
def test_nothing_else_is_intended(name):
    assert not is_intended(name, "adapter")
    assert not is_intended(name, "merged")


def test_each_kind_has_its_own_weights():
    assert is_intended("adapter_model.safetensors", "adapter")
    assert not is_intended("adapter_model.safetensors", "merged")
    assert is_intended("model-00001-of-00002.safetensors", "merged")
    assert not is_intended("model.safetensors", "adapter")
    assert not is_intended("config.json", "adapter")


@pytest.mark.parametrize("kind", ["adapter", "merged"])
def test_chat_templates_with_names_are_sent_and_read_for_secrets_first(tmp_path, kind):
    folder = (adapter_folder if kind == "adapter" else merged_folder)(tmp_path / "out")
    template = folder / "additional_chat_templates" / "tool_use.jinja"
    template.parent.mkdir()
    template.write_text("{{ tools }}")

    assert "additional_chat_templates/tool_use.jinja" in {file.name for file in intended_files(folder, kind)[0]}
    check(folder)
    template.write_text("{# /home/somebody/secret #}")
    with pytest.raises(PushError, match=r"tool_use\.jinja contains a path"):
        check(folder)


def test_what_is_left_out_is_reported(tmp_path):
    folder = adapter_folder(tmp_path / "out")
    (folder / "optimizer.pt").write_bytes(b"x")
    (folder / "notes").mkdir()
    (folder / "notes" / "README.md").write_text("x")

    files, left_out = intended_files(folder, "adapter")

    assert {file.name for file in files} == ADAPTER_FILES
    assert left_out == ("notes/README.md", "optimizer.pt")


@pytest.mark.parametrize(
    ("missing", "name"),
    [
        ("README.md", "README.md"),
        ("adapter_config.json", "adapter_config"),
        ("adapter_model.safetensors", "adapter_mo"),
    ],
)
def test_half_an_export_is_not_sent(tmp_path, missing, name):
    folder = adapter_folder(tmp_path / "out")
    (folder / missing).unlink()

    with pytest.raises(PushError, match=f"The export lacks {name}"):
        intended_files(folder, "adapter")


def test_what_an_export_writes_passes(tmp_path):
    for folder in (adapter_folder(tmp_path / "one"), merged_folder(tmp_path / "two")):
        check(folder, private_folders=(tmp_path,))
        (folder / "README.md").write_text(f"Made in {tmp_path}.")
        with pytest.raises(PushError, match=r"README\.md contains"):
            check(folder, private_folders=(tmp_path,))


def change(folder: Path, **values: object) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    "value", ["/home/ada/models/base", "~/models/base", "C:\\Users\\ada\\base", "C:/models/base", "\\\\nas\\models"]
)
def test_a_folder_is_found_in_a_configuration(tmp_path, value):
    folder = adapter_folder(tmp_path / "out")
    change(folder, base_model_name_or_path=value)

    with pytest.raises(PushError, match=r"adapter_config\.json contains a path") as error_info:
        check(folder)
    assert value not in str(error_info.value)


@pytest.mark.parametrize("value", ["org/base", "base", "/", "a / b", "and/or", "[/INST]", "</s>", "http://x/y", "~"])
def test_what_only_looks_like_one_is_not(tmp_path, value):
    folder = adapter_folder(tmp_path / "out")
    change(folder, auto_mapping={"text": [value]})

    check(folder)
    change(folder, auto_mapping={"text": [value, "/home/ada/models"]})
    with pytest.raises(PushError, match="contains a path"):
        check(folder)


@pytest.mark.parametrize("name", ["README.md", "chat_template.jinja", "tokenizer_config.json", "tokenizer.json"])
def test_a_token_is_found_wherever_it_stands(tmp_path, name):
    folder = adapter_folder(tmp_path / "out")
    (folder / name).write_text(json.dumps({"note": f"x{TOKEN}y"}))

    with pytest.raises(PushError, match=f"{name} contains an access token") as error_info:
        check(folder)
    assert TOKEN not in str(error_info.value)


def test_another_persons_token_is_found_by_its_form(tmp_path):
    folder = adapter_folder(tmp_path / "out")
    (folder / "README.md").write_text(f"use {TOKEN}")

    with pytest.raises(PushError, match="access token"):
        check(folder, token=None)


@pytest.mark.parametrize("name", ["README.md", "tokenizer.json", "adapter_config.json"])
def test_this_machines_own_folders_are_found_even_in_a_vocabulary(tmp_path, name):
    folder = adapter_folder(tmp_path / "out")
    (folder / name).write_text(json.dumps({"note": f"{tmp_path}/x"}))

    with pytest.raises(PushError, match="contains a path"):
        check(folder, private_folders=(tmp_path,))


def test_a_path_is_found_in_the_header_of_weights(tmp_path):
    folder = adapter_folder(tmp_path / "out")
    weights = {"a": np.zeros(2, np.float32)}
    save_file(weights, folder / "adapter_model.safetensors", metadata={"made_in": "/home/ada/runs/7"})

    with pytest.raises(PushError, match=r"adapter_model\.safetensors contains a path"):
        check(folder)


def test_weights_that_are_none_are_not_sent(tmp_path):
    folder = adapter_folder(tmp_path / "out")
    (folder / "adapter_model.safetensors").write_bytes(b"\x80\x04pickle")

    with pytest.raises(PushError, match="an invalid safetensors header"):
        check(folder)
