"""Adapters of the text part of multimodal models get a copy under the names that vLLM reads."""

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from loratory.engine.export.vllm import names_for_vllm, read_vllm_adapter
from tests.chat.tiny_adapters import lora
from tests.export.exporting import export, write_run
from tests.tiny_model import make_tiny_model

MODULES = ("self_attn.q_proj", "linear_attn.out_proj", "mlp.down_proj")
# As Qwen3.5's files name them.
BASE = [f"model.language_model.layers.{layer}.{module}.weight" for layer in range(2) for module in MODULES]
VISION = ["model.visual.blocks.0.attn.qkv.weight", "model.visual.merger.linear_fc1.weight"]
ADAPTER = [
    f"base_model.model.model.layers.{layer}.{module}.lora_{part}.weight"
    for layer in range(2)
    for module in MODULES
    for part in "AB"
]


def write(folder: Path, tensors: list[str], file: str, config_file: str, config: dict) -> Path:
    folder.mkdir()
    save_file({name: torch.ones(1) for name in tensors}, folder / file)
    (folder / config_file).write_text(json.dumps(config))
    return folder


def base_in(folder: Path, tensors: list[str], **config) -> Path:
    return write(folder, tensors, "model.safetensors", "config.json", {"model_type": "qwen3_5", **config})


def adapter_in(folder: Path, tensors=ADAPTER, **config) -> Path:
    values = {"peft_type": "LORA", "r": 12, **config}
    return write(folder, tensors, "adapter_model.safetensors", "adapter_config.json", values)


def test_names_of_the_text_part_become_those_of_the_complete_model():
    names = names_for_vllm(ADAPTER, [*BASE, *VISION])

    assert names[ADAPTER[0]] == "base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_A.weight"
    assert len(set(names.values())) == len(ADAPTER)


def test_vllm_would_ignore_an_adapter_of_qwen3_5_under_the_names_of_peft():
    config = AutoConfig.for_model("qwen3_5")
    config.text_config.num_hidden_layers, config.vision_config.depth = 4, 1
    config.text_config.layer_types = config.text_config.layer_types[:4]
    with torch.device("meta"):
        text = AutoModelForCausalLM.from_config(config)
        files = list(AutoModelForImageTextToText.from_config(config).state_dict())
    peft_names = list(get_peft_model_state_dict(get_peft_model(text, LoraConfig(r=2, target_modules="all-linear"))))

    names = names_for_vllm(peft_names, files)

    assert not {name.removeprefix("base_model.model.").split(".lora_")[0] + ".weight" for name in peft_names} & set(
        files
    )
    read = {name.removeprefix("base_model.model.").split(".lora_")[0] + ".weight" for name in names.values()}
    assert read <= set(files)


def test_an_export_has_the_copy_that_vllm_reads(home, tmp_path):
    base = make_tiny_model(tmp_path / "base", tie_word_embeddings=False)
    run = write_run(tmp_path / "run", base, lora())
    tensors = load_file(base / "model.safetensors")
    tensors_of_files = {name.replace("model.", "model.language_model.", 1): tensor for name, tensor in tensors.items()}
    save_file(tensors_of_files, base / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"text_config": {}}))

    result = export(home, run, tmp_path / "out", kind="adapter", verify=False)

    assert {"vllm/adapter_config.json", "vllm/adapter_model.safetensors"} <= {file.name for file in result.files}
    assert any("which vLLM reads" in note for note in result.notes)
    ours, copy = (load_file(tmp_path / "out" / folder / "adapter_model.safetensors") for folder in (".", "vllm"))
    for name, tensor in ours.items():
        assert torch.equal(
            copy[name.replace("base_model.model.model.", "base_model.model.model.language_model.")], tensor
        )
    assert "--lora-modules tuned=out/vllm" in (tmp_path / "out" / "README.md").read_text()


def test_names_that_are_the_files_own_stay():
    assert names_for_vllm([name.replace("model.layers", "model.language_model.layers") for name in ADAPTER], BASE) == {}


def test_a_vision_tower_with_the_same_layers_is_not_taken_for_the_text():
    vision = [name.replace("language_model", "vision_tower") for name in BASE]

    assert names_for_vllm(ADAPTER, [*vision, *BASE]) == names_for_vllm(ADAPTER, BASE)


def test_a_head_that_the_files_have_under_its_name_keeps_it():
    head = "base_model.model.lm_head.lora_A.weight"

    names = names_for_vllm([*ADAPTER, head], [*BASE, "lm_head.weight"])

    assert names[head] == head


@pytest.mark.parametrize("base", [[], VISION, BASE[:2]])
def test_names_that_lead_nowhere_are_unknown(base):
    assert names_for_vllm(ADAPTER, base) is None


def test_a_plain_model_is_read_as_it_is(tmp_path):
    base = base_in(tmp_path / "base", [name.replace("language_model.", "") for name in BASE])

    report = read_vllm_adapter(adapter_in(tmp_path / "adapter"), base, "me/base")

    assert report.note == ""
    assert "--max-lora-rank 16 --lora-modules tuned=me/run\n" in report.section("me/run", "me/base")


def test_the_card_names_the_folder_that_vllm_reads(tmp_path):
    report = read_vllm_adapter(
        adapter_in(tmp_path / "adapter", rank_pattern={"q_proj": 40}),
        base_in(tmp_path / "base", BASE, text_config={}),
        "base",
    )

    assert "--max-lora-rank 64 --lora-modules tuned=run/vllm" in report.section("run", "base")
    assert "silently" in report.note


def test_what_is_unknown_is_reported(tmp_path):
    report = read_vllm_adapter(
        adapter_in(tmp_path / "adapter"), base_in(tmp_path / "base", VISION, text_config={}), "base"
    )

    assert report.note.startswith("vLLM may ignore this adapter")


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"use_dora": True}, "it uses DoRA"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "all"}, "it has biases"),
        ({"peft_type": "PREFIX_TUNING"}, "it is PREFIX TUNING"),
        ({"r": 1024}, "its rank 1024 is above 512"),
    ],
)
def test_what_vllm_refuses_is_reported(tmp_path, config, reason):
    report = read_vllm_adapter(adapter_in(tmp_path / "adapter", **config), base_in(tmp_path / "base", BASE), "base")

    assert reason in report.section("run", "base")
    assert "vllm serve" not in report.section("run", "base")
