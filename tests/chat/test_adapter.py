"""One copy of the weights answers as base and as tuned, each exactly."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from loratory.engine.chat.target import PlannedWeights
from loratory.engine.chat.worker.adapter import AdaptedBase
from loratory.engine.errors import ModelError
from tests.chat.tiny_adapters import ia3, load_base, lora, make_adapter, prefix_tuning
from tests.tiny_model import make_tiny_model

IDS = torch.arange(4, 24).reshape(1, -1)
METHODS = {"lora": "lora", "dora": "lora", "ia3": "ia3", "saved": "lora"}


@pytest.fixture(scope="module")
def adapters(tiny_model_folder, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("adapters")
    configs = {
        "lora": lora(),
        "other": lora(r=8, target_modules=["v_proj", "q_proj"]),
        "dora": lora(use_dora=True),
        "ia3": ia3(),
        "saved": lora(modules_to_save=["norm"]),
    }
    return {
        name: make_adapter(tiny_model_folder, folder / name, config, seed=number)
        for number, (name, config) in enumerate(configs.items())
    }


def plan(folder: Path, method: str = "lora") -> PlannedWeights:
    return PlannedWeights(folder=folder, name=folder.name, method=method, peft_type=method.upper())


@torch.inference_mode()
def logits(holder: AdaptedBase) -> torch.Tensor:
    return holder.model(input_ids=IDS).logits


@torch.inference_mode()
def reference(base: Path, adapter: Path | None, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype).eval()
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter).eval()
    return model(input_ids=IDS).logits


@pytest.mark.exhaustive(quick=2)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", sorted(METHODS))
def test_tuned_and_base_are_each_exactly_what_peft_and_the_bare_model_give(tiny_model_folder, adapters, name, dtype):
    holder = load_base(tiny_model_folder, dtype=dtype)
    adapter = holder.attach(plan(adapters[name], METHODS[name]), "tuned")
    tuned, base = reference(tiny_model_folder, adapters[name], dtype), reference(tiny_model_folder, None, dtype)
    assert not torch.allclose(tuned, base)

    for _ in range(2):  # back and forth
        holder.switch_to(adapter)
        assert torch.equal(logits(holder), tuned)
        holder.switch_to(None)
        assert torch.equal(logits(holder), base)


def test_biases_that_were_trained_do_not_stay_in_the_base(tmp_path):
    base = make_tiny_model(tmp_path / "base", model_type="qwen2")  # has biases
    tuned = make_adapter(base, tmp_path / "tuned", lora(bias="all"))
    holder = load_base(base)
    adapter = holder.attach(plan(tuned), "tuned")
    assert adapter.biases

    holder.switch_to(adapter)
    assert torch.equal(logits(holder), reference(base, tuned))
    holder.switch_to(None)
    assert torch.equal(logits(holder), reference(base, None))


def test_adapters_come_off_and_leave_the_base_as_it_was(tiny_model_folder, adapters):
    holder = load_base(tiny_model_folder)
    holder.switch_to(holder.attach(plan(adapters["ia3"], "ia3"), "tuned"))

    holder.detach_all()
    assert torch.equal(logits(holder), reference(tiny_model_folder, None))
    holder.switch_to(holder.attach(plan(adapters["lora"]), "tuned"))
    assert torch.equal(logits(holder), reference(tiny_model_folder, adapters["lora"]))


def test_an_adapter_costs_no_second_copy_of_the_weights(tiny_model_folder, adapters):
    holder = load_base(tiny_model_folder)
    before = sum(parameter.nbytes for parameter in holder.model.parameters())

    adapter = holder.attach(plan(adapters["lora"]), "tuned")

    after = sum(parameter.nbytes for parameter in holder.model.parameters())
    assert after - before == adapter.size_bytes


def test_memory_that_runs_out_is_not_taken_for_an_adapter_that_does_not_fit(tiny_model_folder, adapters, monkeypatch):
    def load_adapter(*_, **__):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(PeftModel, "load_adapter", load_adapter)

    with pytest.raises(RuntimeError, match="can't allocate"):
        load_base(tiny_model_folder).attach(plan(adapters["lora"]), "tuned")


def test_an_adapter_of_another_size_of_model_is_refused_with_a_message(tiny_model_folder, tmp_path):
    wider = make_tiny_model(tmp_path / "wider", hidden_size=96)
    adapter = make_adapter(wider, tmp_path / "run-7", lora())

    with pytest.raises(
        ModelError,
        match=r"run-7 was trained on a model of another size: \S+ has 64 out_features in tiny, 96 in the adapter",
    ):
        load_base(tiny_model_folder).attach(plan(adapter), "tuned")


def test_an_adapter_with_layers_that_the_base_lacks_is_refused(tiny_model_folder, tmp_path):
    deeper = make_tiny_model(tmp_path / "deeper", num_hidden_layers=4)
    adapter = make_adapter(deeper, tmp_path / "deep", lora())
    holder = load_base(tiny_model_folder)

    with pytest.raises(ModelError, match=r"deep has weights for model\.layers\.2\.\S+, which tiny does not have"):
        holder.attach(plan(adapter), "tuned")
    assert torch.equal(logits(holder), reference(tiny_model_folder, None))


def test_a_rank_that_differs_from_the_weights_is_refused(adapters, tiny_model_folder, tmp_path):
    copy = Path(shutil.copytree(adapters["lora"], tmp_path / "edited"))
    config = json.loads((copy / "adapter_config.json").read_text())
    (copy / "adapter_config.json").write_text(json.dumps({**config, "r": 32}))

    with pytest.raises(ModelError, match="has rank 32, its weights have rank 4"):
        load_base(tiny_model_folder).attach(plan(copy), "tuned")


def test_missing_tensors_are_refused_instead_of_left_random(adapters, tiny_model_folder, tmp_path):
    copy = Path(shutil.copytree(adapters["lora"], tmp_path / "torn"))
    tensors = load_file(copy / "adapter_model.safetensors")
    missing_name = sorted(tensors)[0]
    save_file(
        {name: tensor for name, tensor in tensors.items() if name != missing_name}, copy / "adapter_model.safetensors"
    )
    holder = load_base(tiny_model_folder)

    with pytest.raises(ModelError, match=r"torn lacks 1 of its 8 tensors"):
        holder.attach(plan(copy), "tuned")
    holder.detach_all()
    assert torch.equal(logits(holder), reference(tiny_model_folder, None))


def test_a_prefix_for_another_model_is_refused(tiny_model_folder, tmp_path):
    deeper = make_tiny_model(tmp_path / "deeper", num_hidden_layers=4)
    adapter = make_adapter(deeper, tmp_path / "prefix", prefix_tuning())

    with pytest.raises(ModelError, match="trained on a model of 4 layers; tiny has 2"):
        load_base(tiny_model_folder).attach(plan(adapter, "prefix_tuning"), "tuned")


def test_a_method_that_chat_does_not_know_is_named(tiny_model_folder, tmp_path):
    from peft import PromptTuningConfig

    adapter = make_adapter(
        tiny_model_folder, tmp_path / "soft", PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    )

    with pytest.raises(ModelError, match="PROMPT_TUNING"):
        load_base(tiny_model_folder).attach(
            PlannedWeights(folder=adapter, name="soft", method="other", peft_type="PROMPT_TUNING"), "tuned"
        )
