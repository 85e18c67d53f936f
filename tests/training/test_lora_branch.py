"""The quick LoRA branch is PEFT's, computed with less work."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from engine.training.ops.lora_branch import make_lora_quick

IDS = torch.arange(40, 64).view(1, 24)


def lora_model(folder, **settings):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(folder)
    values = {"r": 4, "lora_alpha": 12, "target_modules": "all-linear", "task_type": "CAUSAL_LM"} | settings
    model = get_peft_model(model, LoraConfig(**values))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # zero at the start, which would hide half of the gradients
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def loss_and_gradients(model):
    model.zero_grad()
    loss = model(input_ids=IDS, labels=IDS).loss
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}, {"target_modules": ["q_proj", "down_proj"]}])
def test_losses_and_gradients_are_those_of_peft(tiny_model_folder, settings):
    model = lora_model(tiny_model_folder, **settings)
    expected_loss, expected = loss_and_gradients(model)

    replaced = make_lora_quick(model)
    loss, gradients = loss_and_gradients(model)

    assert replaced == sum(name.endswith("lora_A.default.weight") for name in expected)
    torch.testing.assert_close(loss, expected_loss)
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], msg=name)


def test_a_switched_off_adapter_is_the_base_model(tiny_model_folder):
    model = lora_model(tiny_model_folder)
    base = AutoModelForCausalLM.from_pretrained(tiny_model_folder)
    make_lora_quick(model)

    with torch.no_grad(), model.disable_adapter():
        switched_off = model(IDS).logits

    with torch.no_grad():
        assert torch.equal(switched_off, base(IDS).logits)
        assert not torch.equal(model(IDS).logits, switched_off)


def test_merging_still_works(tiny_model_folder):
    model = lora_model(tiny_model_folder)
    make_lora_quick(model)
    model.eval()
    with torch.no_grad():
        before = model(IDS).logits
        merged_model = model.merge_and_unload()
        torch.testing.assert_close(merged_model(IDS).logits, before, rtol=1e-4, atol=1e-4)


def test_dora_keeps_pefts_own_layer(tiny_model_folder):
    assert make_lora_quick(lora_model(tiny_model_folder, use_dora=True)) == 0


def test_dropout_acts_in_training_only(tiny_model_folder):
    model = lora_model(tiny_model_folder, lora_dropout=0.5)
    make_lora_quick(model)
    with torch.no_grad():
        model.train()
        first, second = model(IDS).logits, model(IDS).logits
        model.eval()
        third, fourth = model(IDS).logits, model(IDS).logits

    assert not torch.equal(first, second)
    assert torch.equal(third, fourth)


def test_dropout_leaves_the_mean_as_it_is(tiny_model_folder):
    model = lora_model(tiny_model_folder, lora_dropout=0.4, target_modules=["q_proj"])
    make_lora_quick(model)
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    x = torch.randn(1, 8, 64)
    with torch.no_grad():
        layer.eval()
        whole = layer(x)
        layer.train()
        mean = torch.stack([layer(x) for _ in range(600)]).mean(0)

    assert (mean - whole).norm() / (whole - layer.base_layer(x)).norm() < 0.1


def test_dropped_inputs_get_no_gradient_and_kept_ones_do(tiny_model_folder):
    """Forward and backward must see one and the same mask: their product is a derivative only then."""
    model = lora_model(tiny_model_folder, lora_dropout=0.5, target_modules=["q_proj"]).double()
    make_lora_quick(model)
    layer = model.base_model.model.model.layers[0].self_attn.q_proj.train()
    x = torch.randn(1, 3, 64, dtype=torch.double, requires_grad=True)

    def branch(value):
        torch.manual_seed(5)
        return layer(value)

    assert torch.autograd.gradcheck(branch, (x,))


def test_recomputed_passes_draw_the_same_mask(tiny_model_folder):
    model = lora_model(tiny_model_folder, lora_dropout=0.3).train()
    make_lora_quick(model)
    again = copy.deepcopy(model)
    make_lora_quick(again)
    again.activation_checkpointing_enable({"use_reentrant": False})
    again.enable_input_require_grads()

    torch.manual_seed(9)
    loss, kept = loss_and_gradients(model)
    torch.manual_seed(9)
    recomputed_loss, recomputed = loss_and_gradients(again)

    torch.testing.assert_close(recomputed_loss, loss)
    for name, gradient in recomputed.items():
        torch.testing.assert_close(gradient, kept[name], msg=name)
