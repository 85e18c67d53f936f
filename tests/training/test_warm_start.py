"""A warm start takes an adapter of the same make, and writes into nothing that is not saved again."""

import json

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from loratory.engine.errors import ConfigError
from loratory.engine.training.checkpoints.state_files import load_warm_start, save_adapter
from loratory.engine.training.objectives.reference import ReferenceModel
from tests.tiny_model import make_tiny_model, make_tiny_tokenizer
from tests.training.tiny_training import load_adapted, make_config

EMBEDDINGS = {"modules_to_save": ["embed_tokens", "lm_head"]}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Qwen2 has biases next to the weights that LoRA adapts."""
    folder = tmp_path_factory.mktemp("warm-start") / "qwen2"
    return make_tiny_model(folder, model_type="qwen2", tie_word_embeddings=False)


def adapt(base, **adapter):
    torch.manual_seed(0)
    return load_adapted(make_config(base, adapter=adapter))[0]


def earlier(base, folder, **adapter):
    """Save an adapter whose every trained weight has moved."""
    model = adapt(base, **adapter)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    save_adapter(model, make_tiny_tokenizer(), folder)
    return folder


@pytest.mark.exhaustive
@pytest.mark.parametrize("adapter", [{}, EMBEDDINGS, {"bias": "all"}, {"bias": "lora_only"}], ids=str)
def test_an_adapter_that_is_continued_is_saved_whole(base, tmp_path, adapter):
    folder = earlier(base, tmp_path / "first", **adapter)
    model = adapt(base, **adapter)
    load_warm_start(model, folder)
    save_adapter(model, make_tiny_tokenizer(), tmp_path / "second")
    again = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "second").eval()
    first = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder).eval()

    ids = torch.arange(10, 40).view(1, -1)
    with torch.no_grad():
        expected = first(ids).logits
        torch.testing.assert_close(model.eval()(ids).logits, expected)
        torch.testing.assert_close(again(ids).logits, expected)


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "adapter",
    [{}, EMBEDDINGS, {"bias": "all"}, {"bias": "lora_only"}, {"use_dora": True}, {"use_dora": True, "bias": "all"}],
    ids=str,
)
def test_the_base_beneath_a_warm_start_is_the_untrained_one(base, tmp_path, adapter, recwarn):
    model = adapt(base, **adapter)
    replaced = load_warm_start(model, earlier(base, tmp_path / "first", **adapter))
    plain = AutoModelForCausalLM.from_pretrained(base).eval()
    ids = torch.arange(10, 40).view(1, -1)
    with torch.no_grad():
        warm = model.eval()(ids).logits
        recwarn.clear()
        with ReferenceModel(replaced).replacing(model):
            below = model(ids).logits
        again = model(ids).logits

    torch.testing.assert_close(below, plain(ids).logits)
    assert torch.equal(again, warm)
    assert not torch.allclose(warm, below, atol=1e-3)
    assert not [warning for warning in recwarn if "disabling adapter" in str(warning.message)]
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trainable == replaced.keys()


def test_memory_that_runs_out_is_not_taken_for_an_adapter_of_another_model(base, tmp_path, monkeypatch):
    def set_state(*_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    folder, model = earlier(base, tmp_path / "first"), adapt(base)
    monkeypatch.setattr(peft, "set_peft_model_state_dict", set_state)

    with pytest.raises(RuntimeError, match="can't allocate"):
        load_warm_start(model, folder)


@pytest.mark.exhaustive(quick=2)
@pytest.mark.parametrize(
    ("was", "is_", "message_part"),
    [
        ({"bias": "all"}, {}, "its bias is all, and this run's is none"),
        ({}, {"bias": "lora_only"}, "its bias is none, and this run's is lora_only"),
        (EMBEDDINGS, {}, "its modules_to_save are embed_tokens, lm_head, and this run's are none"),
        ({}, EMBEDDINGS, "its modules_to_save are none, and this run's are embed_tokens, lm_head"),
    ],
    ids=str,
)
def test_an_adapter_of_another_make_is_refused_and_changes_nothing(base, tmp_path, was, is_, message_part):
    folder = earlier(base, tmp_path / "first", **was)
    model = adapt(base, **is_)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}

    with pytest.raises(ConfigError, match=message_part):
        load_warm_start(model, folder)

    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())


@pytest.mark.parametrize(
    ("adapter", "change", "message_part"),
    [
        (EMBEDDINGS, {"modules_to_save": None}, r"lm_head\.weight, which this run does not train"),
        ({}, {"init_lora_weights": "pissa"}, "initialized with pissa, which changes its base's weights"),
    ],
    ids=["weights of the base", "rewritten base"],
)
def test_an_adapter_that_does_not_fit_the_base_is_refused(base, tmp_path, adapter, change, message_part):
    folder = earlier(base, tmp_path / "first", **adapter)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | change))
    model = adapt(base)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}

    with pytest.raises(ConfigError, match=message_part):
        load_warm_start(model, folder)

    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
