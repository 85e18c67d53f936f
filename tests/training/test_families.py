"""Families next to Llama: layers with biases, transposed weights, heads that are tied; on plain and on quantized weights."""

import dataclasses

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from loratory.engine.config.run import AdapterConfig
from loratory.engine.errors import ConfigError
from loratory.engine.inspector.worker.inventory import inventory_of
from loratory.engine.training.assembly import assemble
from loratory.engine.training.methods.base import choose_targets
from loratory.engine.training.ops.lora_linear import fuse_lora
from loratory.engine.training.placement import Placement
from tests.tiny_model import make_tiny_model
from tests.training.tiny_training import CPU, ON_CPU, load_adapted, make_config, make_rows, make_training, train_tiny

# Qwen2 has biases next to the weights that LoRA adapts, GPT-2 transposed weights and biases, Phi a bias at the head too.
FAMILIES = {
    "qwen2": {},
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_inner": 128, "n_positions": 512},
    "phi": {},
    "opt": {"ffn_dim": 128, "word_embed_proj_dim": 64},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Make a tiny model of each family."""
    root = tmp_path_factory.mktemp("families")
    return {
        name: make_tiny_model(root / name, model_type=name, tie_word_embeddings=name != "phi", **values)
        for name, values in FAMILIES.items()
    }


@pytest.mark.exhaustive(quick=2)
@pytest.mark.parametrize("quantization", ["none", "nf4", "int8"])
@pytest.mark.parametrize("family", FAMILIES)
def test_lora_trains_as_pefts_own_layers_do(folders, family, quantization, tmp_path, monkeypatch):
    config = make_config(folders[family], model={"quantization": quantization})
    rows = make_rows(8)
    ours = train_tiny(config, rows, tmp_path / "ours")

    monkeypatch.setattr("loratory.engine.training.methods.registry.fuse_lora", lambda _: 0)
    pefts = train_tiny(config, rows, tmp_path / "pefts")

    assert ours.losses == pytest.approx(pefts.losses, rel=2e-3)
    assert ours.losses[-1] != ours.losses[0]


@pytest.mark.parametrize("method", ["prompt_tuning", "p_tuning"])
def test_virtual_tokens_are_refused_where_embeddings_are_projected(method, tmp_path):
    folder = make_tiny_model(tmp_path / "opt", model_type="opt", ffn_dim=128, word_embed_proj_dim=32)
    config = make_config(folder, adapter={"method": method})

    with pytest.raises(ConfigError, match=r"its embeddings have 32 features and its layers 64, .* use LoRA"):
        make_training(config, make_rows(4), tmp_path / "run")


MOE = {"num_local_experts": 2, "num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 64}


@pytest.mark.parametrize("window", [16, 64])
def test_a_window_that_only_the_mask_knows_is_kept(window, tmp_path):
    folder = make_tiny_model(tmp_path / "phimoe", model_type="phimoe", sliding_window=window, **MOE)
    config = make_config(folder, training={"max_length": 48})
    rows = make_rows(8, 48)
    training = train_tiny(config, rows, tmp_path / "out")

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa").eval()
    first = [row for plan in next(training.trainer._planner.steps(0)).passes for row in plan.rows]
    ids, labels = zip(
        *((torch.tensor([rows[row].input_ids]), torch.tensor(rows[row].labels)) for row in first), strict=True
    )
    with torch.no_grad():
        logits = torch.cat([model(plan).logits[0, :-1] for plan in ids])
    expected = torch.nn.functional.cross_entropy(logits, torch.cat([plan[1:] for plan in labels]))
    # The adapter changes nothing before its first step.
    assert training.losses[0] == pytest.approx(float(expected), rel=1e-4)
    assert training.assembly.setup.settings.batching == ("padded" if window < 48 else "joined")


def test_a_router_takes_no_adapter(tmp_path):
    folder = make_tiny_model(tmp_path / "phimoe", model_type="phimoe", **MOE)
    model = AutoModelForCausalLM.from_pretrained(folder)
    shape = inventory_of(model.config.to_dict())

    assert "router" not in choose_targets(model, AdapterConfig())
    assert sorted(shape.linear_names()) == choose_targets(model, AdapterConfig())


class _Custom(torch.autograd.Function):
    """As bitsandbytes multiplies int8 weights on a GPU: what it returns is a view of what it computed."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(weight)
        return (x.reshape(-1, x.shape[-1]) @ weight.t()).reshape(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx, grad):
        return grad @ ctx.saved_tensors[0], None


class _CustomLinear(torch.nn.Linear):
    def forward(self, x):
        return _Custom.apply(x, self.weight)


def test_a_frozen_layer_that_returns_a_view_is_added_to_all_the_same(folders):

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(folders["phi"])
    model = get_peft_model(model, LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False))
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    plain = layer.base_layer
    custom = _CustomLinear(plain.in_features, plain.out_features, bias=False)
    custom.weight = plain.weight
    layer.base_layer = custom
    x = torch.randn(2, 5, plain.in_features, requires_grad=True)
    expected = layer(x)
    (expected_grad,) = torch.autograd.grad(expected.square().sum(), x)

    fuse_lora(model)
    result = layer(x)
    (found_grad,) = torch.autograd.grad(result.square().sum(), x)

    torch.testing.assert_close(result, expected)
    torch.testing.assert_close(found_grad, expected_grad)


@pytest.mark.exhaustive(quick=2)
@pytest.mark.parametrize(
    "adapter",
    [
        {},
        {"modules_to_save": ["embed_tokens"]},
        {"modules_to_save": ["lm_head"]},
        {"bias": "all"},
        {"bias": "lora_only"},
        {"use_dora": True},
        {"method": "ia3"},
        {"method": "prefix_tuning", "num_virtual_tokens": 4},
        {"method": "none"},
    ],
    ids=str,
)
def test_in_float16_whatever_is_trained_meets_its_own_precision(folders, adapter, tmp_path):
    """On a processor in place of a GPU without bfloat16: which dtypes meet is the same there."""
    config = make_config(folders["qwen2"], model={"compute_dtype": "float16"}, adapter=adapter)
    old_gpu = dataclasses.replace(CPU, kind="cuda", has_fast_bfloat16=False)
    torch.manual_seed(0)
    model, precision = load_adapted(config, Placement(old_gpu, torch.device("cpu")))

    assembly = assemble(model, config, precision, ON_CPU, make_rows(4), 0)

    assert precision.compute is torch.float16
    trainable = {p.dtype for p in model.parameters() if p.requires_grad}
    assert trainable == {torch.float32}
    assert (assembly.setup.autocast is None) == (adapter == {})
