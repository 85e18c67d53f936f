"""LoRA layers that are one function, alone or with those that share their input, are PEFT's."""

import copy

import pytest
import torch
from peft import LoraConfig
from torch import nn
from torch.utils.checkpoint import checkpoint

from loratory.engine.config.optimizations import VARIABLE
from loratory.engine.training.ops.lora_linear import fuse_lora, lora_linears
from tests.training.lora_layers import WIDTH, Layer, adapt, answer, fuse, groups, require_as_near, require_equal


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("shape", [(7, WIDTH), (2, 5, WIDTH), (1, WIDTH), (0, WIDTH), (2, 0, WIDTH)], ids=str)
def test_outputs_and_gradients_are_those_of_peft(shape, shared):
    model, x = adapt(), torch.randn(shape)
    expected = answer(model, x)

    assert fuse(model, shared=shared) == 4

    require_equal(answer(model, x), expected, rtol=1e-4, atol=1e-5)
    assert groups(model) == ([1, 3] if shared else [1, 1, 1, 1])


@pytest.mark.parametrize(
    ("settings", "sizes"),
    [
        ({"use_rslora": True}, [1, 3]),
        ({"rank_pattern": {"q": 8, "k": 3}, "alpha_pattern": {"q": 12, "k": 4.5}}, [1, 3]),
        ({"alpha_pattern": {"k": 30}}, [1, 1, 1, 1]),
    ],
    ids=["rsLoRA", "ranks", "scalings"],
)
def test_ranks_may_differ_among_layers_with_one_input_and_scalings_may_not(settings, sizes):
    model, x = adapt(**settings), torch.randn(3, WIDTH)
    expected = answer(model, x)
    fuse(model)

    require_equal(answer(model, x), expected, rtol=1e-4, atol=1e-5)
    assert groups(model) == sizes


@pytest.mark.parametrize("layers", ["alone", "shared", "behind a product of their own"])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_gradients_are_the_derivatives(layers, dropout):
    model = adapt(torch.float64, trained=torch.float64, lora_dropout=dropout)
    fuse(model, shared=layers == "shared")
    if layers == "behind a product of their own":
        for name in "qkvo":
            getattr(model.base_model.model, name).base_layer.register_forward_hook(lambda *_: None)
    trainable = [p for p in model.parameters() if p.requires_grad]
    x = torch.randn(3, WIDTH, dtype=torch.float64, requires_grad=True)

    def run(x, *_):
        torch.manual_seed(3)
        return model.train()(x)

    assert torch.autograd.gradcheck(run, (x, *trainable), fast_mode=True)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("copies", [False, True], ids=["cast at each call", "cast once a step"])
def test_sixteen_bits_are_as_near_to_float32_as_pefts_are(shared, copies):
    wide = adapt()
    model = copy.deepcopy(wide)
    for module in model.modules():
        if type(module) is nn.Linear and not module.weight.requires_grad:
            module.to(torch.bfloat16)
    x = torch.randn(5, WIDTH)
    expected = answer(wide, x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        of_peft = answer(copy.deepcopy(model), x.bfloat16())
    fuse(model, shared=shared)
    if copies:
        with lora_linears(model).step():
            got = answer(model, x.bfloat16())
    else:
        got = answer(model, x.bfloat16())

    require_as_near(got, of_peft, expected)
    assert all(g.dtype == torch.float32 for name, g in got[1].items() if name != "x")


def test_dropout_draws_what_the_branch_alone_draws():
    model, x = adapt(lora_dropout=0.3).train(), torch.randn(6, WIDTH)
    alone = copy.deepcopy(model)
    fuse_lora(alone)
    fuse(model)
    torch.manual_seed(4)
    expected = answer(alone, x)
    torch.manual_seed(4)

    require_equal(answer(model, x), expected, rtol=1e-4, atol=1e-5)


def test_recomputed_passes_give_the_same_and_leave_nothing_waiting():
    model, x = adapt(lora_dropout=0.3).train(), torch.randn(6, WIDTH)
    fuse(model)
    torch.manual_seed(5)
    expected = answer(model, x)
    torch.manual_seed(5)
    recomputed = copy.deepcopy(model)
    layer = recomputed.base_model.model
    recomputed.forward = lambda x: checkpoint(layer, x, use_reentrant=False)

    require_equal(answer(recomputed, x), expected)
    assert all(group._waiting is None for group in lora_linears(recomputed).groups)


def test_without_gradients_nothing_is_kept():
    model, x = adapt(), torch.randn(3, WIDTH)
    with torch.no_grad():
        expected = model(x)
        fuse(model)
        got = model(x)

    torch.testing.assert_close(got, expected)
    assert got.grad_fn is None
    with torch.inference_mode():
        torch.testing.assert_close(model(torch.randn(3, WIDTH)).shape, expected.shape)


def test_a_switched_off_adapter_is_the_base_model():
    model, x = adapt(), torch.randn(3, WIDTH)
    fuse(model)
    with torch.no_grad(), model.disable_adapter():
        off = model(x)

    torch.manual_seed(0)
    assert torch.equal(off, Layer()(x).detach())
    assert not torch.equal(model(x), off)


def test_merging_gives_the_same_outputs():
    model, x = adapt(), torch.randn(3, WIDTH)
    fuse(model)
    with torch.no_grad():
        expected = model.eval()(x)

        torch.testing.assert_close(model.merge_and_unload()(x), expected, rtol=1e-4, atol=1e-4)


def test_dropout_acts_in_training_only_and_leaves_the_mean():
    model, x = adapt(lora_dropout=0.4), torch.randn(8, WIDTH)
    fuse(model)
    layer = model.base_model.model.q
    with torch.no_grad():
        whole = layer.eval()(x)
        assert torch.equal(layer(x), whole)
        outputs = torch.stack([layer.train()(x) for _ in range(600)])

    assert not torch.equal(outputs[0], outputs[1])
    assert (outputs.mean(0) - whole).norm() / (whole - layer.base_layer(x)).norm() < 0.1


def test_a_second_adapter_is_pefts_own_business():
    model, x = adapt(), torch.randn(3, WIDTH)
    fuse(model)
    model.add_adapter("other", LoraConfig(r=2, target_modules=["q", "k", "v", "o"], init_lora_weights=False))
    model.set_adapter("other")
    plain = copy.deepcopy(model)
    for module in plain.modules():
        vars(module).pop("forward", None)

    torch.testing.assert_close(model(x), plain(x))


def test_weights_that_are_swapped_within_a_step_are_seen():
    """As the reference of a warm-started preference run is: the weights that it started from, for one pass."""
    model, x = adapt(torch.bfloat16), torch.randn(3, WIDTH, dtype=torch.bfloat16)
    fuse(model)
    a = model.base_model.model.q.lora_A["default"].weight
    with torch.no_grad():
        before = model(x)
        with lora_linears(model).step():
            own, a.data = a.data, torch.zeros_like(a)
            with_zeros = model(x)
            a.data = own
            back = model(x)

    assert not torch.equal(with_zeros, before)
    assert torch.equal(back, before)


def test_copies_follow_the_optimizer():
    model, x = adapt(torch.bfloat16), torch.randn(3, WIDTH, dtype=torch.bfloat16)
    fuse(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1, fused=True)
    for _ in range(3):
        with lora_linears(model).step():
            model(x).float().square().sum().backward()
            within = model(x)
        torch.testing.assert_close(within, model(x), rtol=0, atol=0)
        optimizer.step()
        optimizer.zero_grad()


def test_a_shared_layer_and_another_input_are_computed_for_themselves():
    model = adapt()
    plain = copy.deepcopy(model)
    fuse(model)
    x, other = torch.randn(3, WIDTH), torch.randn(3, WIDTH)
    got, expected = model.base_model.model, plain.base_model.model

    def calls(layer):
        first = layer.q(x)
        return [first, layer.q(other), layer.k(x), layer.k(other), layer.v(other), layer.q(x), layer.k(x), layer.v(x)]

    for own, theirs in zip(calls(got), calls(expected), strict=True):
        torch.testing.assert_close(own, theirs)


def test_an_input_that_is_changed_between_two_calls_is_another_one():
    model = adapt()
    plain = copy.deepcopy(model)
    fuse(model)
    x = torch.randn(3, WIDTH)
    with torch.no_grad():
        model.base_model.model.q(x)
        x.add_(1)
        torch.testing.assert_close(model.base_model.model.k(x), plain.base_model.model.k(x))


def test_a_graph_that_is_kept_gives_its_gradients_twice():
    model, x = adapt(), torch.randn(3, WIDTH)
    fuse(model)
    trainable = [p for p in model.parameters() if p.requires_grad]
    loss = model(x).square().sum()

    first = torch.autograd.grad(loss, trainable, retain_graph=True)
    again = torch.autograd.grad(loss, trainable)

    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("settings", [{"bias": "lora_only"}, {"use_dora": True}], ids=str)
def test_what_one_function_does_not_describe_is_as_peft_has_it(settings):
    model, x = adapt(**settings), torch.randn(3, WIDTH)
    expected = answer(model, x)
    fuse(model)

    require_equal(answer(model, x), expected, rtol=1e-4, atol=1e-5)


def test_hooks_of_the_frozen_layer_are_called():
    model, x = adapt(), torch.randn(3, WIDTH)
    fuse(model)
    observations = []
    model.base_model.model.k.base_layer.register_forward_hook(lambda *_: observations.append("called"))

    model(x)

    assert observations == ["called"]


def test_autocast_casts_as_for_any_layer():
    model, x = adapt(torch.bfloat16), torch.randn(3, WIDTH)
    plain = copy.deepcopy(model)
    fuse(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got, expected = answer(model, x), answer(plain, x)

    assert got[0].dtype == torch.bfloat16
    require_equal(got, expected, rtol=0.05, atol=0.5)


def test_copies_are_kept_for_the_passes_of_a_step():
    model = adapt(torch.bfloat16)
    fuse(model)
    x = torch.zeros(2, WIDTH, dtype=torch.bfloat16)
    with lora_linears(model).step():
        model(x)
        copies = [group.copies for group in lora_linears(model).groups]
        model(x)
        assert None not in copies
        assert [id(group.copies) for group in lora_linears(model).groups] == list(map(id, copies))

    assert all(group.copies is None for group in lora_linears(model).groups)


def test_layers_with_one_input_can_be_left_apart(monkeypatch):
    monkeypatch.setenv(VARIABLE, "shared_inputs")
    model = adapt(torch.bfloat16)
    fuse(model)

    assert groups(model) == [1, 1, 1, 1]
