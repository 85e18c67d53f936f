"""Layers that answer quickly compute what they compute in training."""

import contextlib

import pytest
import torch

from loratory.engine.training.assembly import assemble
from loratory.engine.training.ops.answer_linear import quick_linears
from loratory.engine.training.ops.loss import causal_lm_of
from tests.tiny_model import make_tiny_model
from tests.training.tiny_training import ON_CPU, load_adapted, make_config, make_rows


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Return models of which one has biases, and heads of their own."""
    folder = tmp_path_factory.mktemp("models")
    options = {"tie_word_embeddings": False, "initializer_range": 0.2}
    return {kind: make_tiny_model(folder / kind, model_type=kind, **options) for kind in ("llama", "qwen2")}


@pytest.mark.parametrize("is_off", [False, True], ids=["with its adapter", "without"])
@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_logits_are_those_of_the_layers_as_they_are(kind, is_off, folders):
    config = make_config(folders[kind], model={"compute_dtype": "bfloat16"}, adapter={"lora_dropout": 0.0})
    model, precision = load_adapted(config)
    assemble(model, config, precision, ON_CPU, make_rows(4), 3)
    for weight in model.parameters():
        if weight.requires_grad:
            torch.nn.init.normal_(weight, std=0.2, generator=torch.Generator().manual_seed(0))
    causal_lm, ids = causal_lm_of(model).eval(), torch.tensor([list(range(20, 40)), list(range(60, 80))])
    causal_lm.set_attn_implementation("sdpa")
    before = {module: vars(module).get("forward") for module in model.modules()}

    with torch.no_grad(), model.disable_adapter() if is_off else contextlib.nullcontext():
        expected = causal_lm(ids).logits.float()
        with quick_linears(model, causal_lm.get_output_embeddings()):
            assert any(vars(module).get("forward") is not before[module] for module in model.modules())
            actual = causal_lm(ids).logits.float()

    assert (actual - expected).norm() <= 0.01 * expected.norm()
    assert {module: vars(module).get("forward") for module in model.modules()} == before
