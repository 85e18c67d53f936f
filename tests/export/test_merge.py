"""Merged weights are those that PEFT's own merge gives, whatever was trained and however the base is laid out."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from loratory.engine.chat.target import PlannedWeights
from loratory.engine.errors import ModelError
from loratory.engine.export.worker.merge import (
    BaseFiles,
    NotByTensorError,
    plan_merge,
    tied_weights,
    untie_changed,
    write_shards,
    write_untied_config,
)
from tests.chat.tiny_adapters import lora, make_adapter
from tests.tiny_model import make_tiny_model

IDS = torch.arange(4, 24).reshape(1, -1)

CONFIGS = {
    "plain": lambda: lora(target_modules="all-linear"),
    "rank-stabilized": lambda: lora(r=9, use_rslora=True),
    "patterns": lambda: lora(rank_pattern={"q_proj": 2}, alpha_pattern={"layers.1.mlp.down_proj": 32}),
    "dora": lambda: lora(use_dora=True),
    "saved modules": lambda: lora(modules_to_save=["norm", "embed_tokens"]),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("merge") / "base", tie_word_embeddings=False, initializer_range=0.4)


def plan_weights(folder: Path) -> PlannedWeights:
    return PlannedWeights(folder=folder, name=folder.name, method="lora")


def merge_into(target: Path, base: Path, trained: PlannedWeights, dtype=torch.float32, shard=10**9) -> Path:
    target.mkdir()
    merge = plan_merge(trained, BaseFiles.open(base, "base"), dtype)
    write_shards(target, merge.plans(), merge.read, shard, lambda _: None)
    shutil.copy(base / "config.json", target)
    return target


@torch.inference_mode()
def logits(model) -> torch.Tensor:
    return model.eval()(input_ids=IDS).logits


def peft_merged(base: Path, adapter: Path):
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return PeftModel.from_pretrained(model, adapter).merge_and_unload()


@pytest.mark.exhaustive(quick=2)
@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_merged_as_peft_merges(base, tmp_path, name):
    config = CONFIGS[name]()
    adapter = make_adapter(base, tmp_path / "adapter", config)

    merged_model = merge_into(tmp_path / "merged", base, plan_weights(adapter))

    model = AutoModelForCausalLM.from_pretrained(merged_model, dtype=torch.float32)
    expected = logits(peft_merged(base, adapter))
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(expected, logits(AutoModelForCausalLM.from_pretrained(base)), atol=0.1)


def test_biases_are_merged_too(tmp_path):
    base = make_tiny_model(tmp_path / "biased", model_type="qwen2", tie_word_embeddings=False, initializer_range=0.4)
    model = AutoModelForCausalLM.from_pretrained(base)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    model.save_pretrained(base)
    adapter = make_adapter(base, tmp_path / "adapter", lora(bias="all"))

    merged_model = merge_into(tmp_path / "merged", base, plan_weights(adapter))

    model = AutoModelForCausalLM.from_pretrained(merged_model, dtype=torch.float32)
    torch.testing.assert_close(logits(model), logits(peft_merged(base, adapter)), rtol=1e-4, atol=1e-4)


def test_layers_that_hold_their_weights_transposed_are_merged(tmp_path):
    shape = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64, "initializer_range": 0.4}
    folder = make_tiny_model(tmp_path / "gpt2", model_type="gpt2", **shape)
    config = LoraConfig(r=4, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True, task_type="CAUSAL_LM")
    adapter = make_adapter(folder, tmp_path / "adapter", config)
    assert all(name.startswith("transformer.") for name in load_file(folder / "model.safetensors"))

    merged_model = merge_into(tmp_path / "merged", folder, plan_weights(adapter))

    model = AutoModelForCausalLM.from_pretrained(merged_model)
    torch.testing.assert_close(logits(model), logits(peft_merged(folder, adapter)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_are_rounded_once_to_the_chosen_precision(base, tmp_path, dtype):
    adapter = make_adapter(base, tmp_path / "adapter", lora())
    merged_model = merge_into(tmp_path / "merged", base, plan_weights(adapter), dtype)

    tensors = load_file(merged_model / "model.safetensors")
    exact = dict(peft_merged(base, adapter).named_parameters())

    assert {tensor.dtype for tensor in tensors.values()} == {dtype}
    name = "model.layers.0.self_attn.q_proj.weight"
    torch.testing.assert_close(tensors[name], exact[name].detach().to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-6)


def test_a_model_of_several_files_is_divided_again_and_loads(tmp_path, base):
    sharded = tmp_path / "sharded"
    AutoModelForCausalLM.from_pretrained(base).save_pretrained(sharded, max_shard_size="100KB")
    shutil.copytree(base, tmp_path / "copy")
    adapter = make_adapter(base, tmp_path / "adapter", lora())

    merged_model = merge_into(tmp_path / "merged", sharded, plan_weights(adapter), shard=60_000)

    index = json.loads((merged_model / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in merged_model.glob("*.safetensors"))
    assert len(files) > 3
    assert set(index["weight_map"].values()) == set(files)
    model = AutoModelForCausalLM.from_pretrained(merged_model, dtype=torch.float32)
    torch.testing.assert_close(logits(model), logits(peft_merged(base, adapter)), rtol=1e-4, atol=1e-4)


def test_only_one_tensor_is_in_memory_at_a_time(base, tmp_path):
    import weakref

    adapter = make_adapter(base, tmp_path / "adapter", lora())
    merge = plan_merge(plan_weights(adapter), BaseFiles.open(base, "base"), torch.float32)
    living: list[weakref.ref] = []
    most = 0

    def read(name: str) -> torch.Tensor:
        nonlocal most
        tensor = merge.read(name)
        living.append(weakref.ref(tensor))
        most = max(most, sum(reference() is not None for reference in living))
        return tensor

    (tmp_path / "merged").mkdir()
    write_shards(tmp_path / "merged", merge.plans(), read, 10**9, lambda _: None)

    assert len(living) == len(merge.plans())
    assert most <= 2  # the one that is being written, and the one that is being read


def test_what_the_files_do_not_show_is_distinguished(base, tmp_path):
    with_bias = make_adapter(base, tmp_path / "with-bias", lora(lora_bias=True))
    on_embedding = make_adapter(base, tmp_path / "embedding", lora(target_modules=["embed_tokens"]))

    with pytest.raises(NotByTensorError, match="bias"):
        plan_merge(plan_weights(with_bias), BaseFiles.open(base, "base"), None)
    with pytest.raises(NotByTensorError, match="lora_embedding"):
        plan_merge(plan_weights(on_embedding), BaseFiles.open(base, "base"), None)


def test_a_base_whose_files_are_quantized_is_refused(base, tmp_path):
    copy = Path(shutil.copytree(base, tmp_path / "packed"))
    data = (copy / "model.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    entry = next(entry for name, entry in header.items() if name != "__metadata__")
    entry |= {"dtype": "F4", "shape": [entry["shape"][0] * 8, *entry["shape"][1:]]}  # as many bytes
    text = json.dumps(header).encode()
    (copy / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])

    with pytest.raises(ModelError, match="has F4 weights, which cannot be merged into"):
        BaseFiles.open(copy, "packed")


@pytest.mark.parametrize("saved", [["lm_head"], ["embed_tokens"], ["embed_tokens", "lm_head"]])
def test_what_was_trained_of_a_tied_pair_is_no_longer_tied(tmp_path, saved):
    base = make_tiny_model(tmp_path / "base", tie_word_embeddings=True, initializer_range=0.4)
    config = lora(modules_to_save=saved)
    adapter = make_adapter(base, tmp_path / "adapter", config)
    live = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter)
    merge = plan_merge(plan_weights(adapter), BaseFiles.open(base, "base"), torch.float32)
    tied_names = tied_weights(base)

    assert tied_names == {"lm_head.weight": "model.embed_tokens.weight"}
    assert untie_changed(merge)
    merged = tmp_path / "merged"
    merged.mkdir()
    write_shards(merged, merge.plans(), merge.read, 10**9, lambda _: None)
    shutil.copy(base / "config.json", merged)
    write_untied_config(merged / "config.json")

    model = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32)
    assert not model.config.tie_word_embeddings
    torch.testing.assert_close(logits(model), logits(live), rtol=1e-4, atol=1e-4)
    assert load_file(merged / "model.safetensors").keys() >= {"lm_head.weight", "model.embed_tokens.weight"}


def test_a_tied_pair_that_no_adapter_touches_stays_tied(tmp_path):
    base = make_tiny_model(tmp_path / "base", tie_word_embeddings=True)
    merge = plan_merge(
        plan_weights(make_adapter(base, tmp_path / "adapter", lora())), BaseFiles.open(base, "base"), None
    )

    assert not untie_changed(merge)
    assert "lm_head.weight" not in {plan.name for plan in merge.plans()}


def test_the_configuration_reports_it_also_for_the_text_part_of_a_larger_model(tmp_path):
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"model_type": "x", "text_config": {"tie_word_embeddings": True, "hidden_size": 8}}))

    write_untied_config(file)

    assert json.loads(file.read_text()) == {
        "model_type": "x",
        "tie_word_embeddings": False,
        "text_config": {"tie_word_embeddings": False, "hidden_size": 8},
    }
