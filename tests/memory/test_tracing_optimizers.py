"""Each optimizer's state and its temporaries against the step that it really takes, on a processor.

On a processor the number that counts an optimizer's steps is a tensor of four bytes for each weight; on a GPU it stands in
RAM or is as small. The formulas leave it out, and single numbers such as a norm; nothing else may differ.
"""

from contextlib import nullcontext

import pytest
import torch

from loratory.engine.config.run import AdapterConfig
from loratory.engine.memory.methods.registry import count_trainable
from loratory.engine.memory.persistent import optimizer_scratch_bytes, optimizer_state_bytes
from loratory.engine.memory.structure import find_targets
from loratory.engine.memory.workload import Optimizer
from tests.memory.live_bytes import LiveBytes
from tests.memory.traced_steps import LORA, Case, build_model, plain_step, shape_of

COUNTER_BYTES = 4  # of steps, one a tensor
FEW_NUMBERS_BYTES = 24  # norms, roots of them, clipping

WIDE = {"hidden_size": 258, "intermediate_size": 202}
FULL = AdapterConfig(method="none")
DORA = AdapterConfig(r=7, target_modules=("q_proj", "v_proj"), use_dora=True)
IA3 = AdapterConfig(method="ia3", target_modules=("k_proj", "v_proj", "down_proj"))


def adafactor(groups):
    from transformers.optimization import Adafactor

    # As transformers' trainer makes it for `adafactor`: `get_optimizer_cls_and_kwargs`.
    return Adafactor(groups, lr=1e-3, scale_parameter=False, relative_step=False)


def eight_bit(groups):
    import bitsandbytes

    return bitsandbytes.optim.AdamW8bit(groups, lr=1e-3)


def adamw(**kernel):
    return lambda groups: torch.optim.AdamW(groups, lr=1e-3, **kernel)


def sgd(**settings):
    return lambda groups: torch.optim.SGD(groups, lr=1e-3, **settings)


MAKERS = {
    "AdamW, fused": (adamw(fused=True), Optimizer(fused=True)),
    "AdamW, foreach": (adamw(foreach=True), Optimizer(foreach=True)),
    "AdamW, a plain loop": (adamw(foreach=False), Optimizer(foreach=False)),
    "AdamW of 8 bits": (eight_bit, Optimizer("adamw_8bit", state_width=1)),
    "SGD": (sgd(foreach=False), Optimizer("sgd", foreach=False)),
    "SGD, foreach": (sgd(foreach=True), Optimizer("sgd")),
    "SGD with decay": (sgd(foreach=False, weight_decay=0.1), Optimizer("sgd", foreach=False, decays=True)),
    "SGD with decay, foreach": (sgd(foreach=True, weight_decay=0.1), Optimizer("sgd", decays=True)),
    "Adafactor": (adafactor, Optimizer("adafactor")),
}
TRAINED = {
    "LoRA": Case(LORA),
    "LoRA of larger tensors": Case(AdapterConfig(r=16), config=WIDE),
    "DoRA": Case(DORA),
    "IA3": Case(IA3),
    "full": Case(FULL, dtype=torch.float32),
    "full, with biases": Case(FULL, dtype=torch.float32, model_type="qwen2"),
    "full, with stacked experts": Case(
        FULL,
        dtype=torch.float32,
        model_type="mixtral",
        config={"num_local_experts": 4, "num_experts_per_tok": 2, "hidden_size": 72, "intermediate_size": 104},
    ),
}


def trained_in_groups(model):
    """As transformers' trainer makes its groups."""
    from transformers import Trainer

    decay = set(Trainer.get_decay_parameter_names(None, model))
    parameters = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    groups = [[p for name, p in parameters if (name in decay) == decays] for decays in (True, False)]
    return [
        {"params": group, **({} if decays else {"weight_decay": 0.0})}
        for group, decays in zip(groups, (True, False), strict=True)
    ]


def counts_of(case):
    shape = shape_of(case)
    return count_trainable(shape, case.adapter, find_targets(shape, case.adapter))


@pytest.mark.parametrize("case", TRAINED.values(), ids=TRAINED.keys())
def test_shapes_of_what_is_trained_are_the_real_ones(case):
    model = build_model(case)

    real = sorted(tuple(parameter.shape) for parameter in model.parameters() if parameter.requires_grad)

    assert sorted(counts_of(case).shapes) == real


@pytest.mark.exhaustive(quick=3)
@pytest.mark.parametrize(("make", "optimizer"), MAKERS.values(), ids=MAKERS.keys())
@pytest.mark.parametrize("case", TRAINED.values(), ids=TRAINED.keys())
def test_state_and_temporaries_are_those_of_the_real_step(case, make, optimizer):
    torch.manual_seed(0)
    model = build_model(case)
    step = plain_step(model)
    counts = counts_of(case)
    stepper = make(trained_in_groups(model))
    step(lambda _: nullcontext()).loss.detach()
    watch = LiveBytes()

    with watch:
        stepper.step()  # the first one makes the state
        state = watch.live
        with watch.phase("step"):
            stepper.step()
    scratch = watch.peaks["step"] - state

    few = COUNTER_BYTES * len(counts.shapes) + FEW_NUMBERS_BYTES
    prediction = optimizer_state_bytes(counts.shapes, optimizer).on_device
    assert 0 <= state - prediction <= few, f"state: {state - prediction} bytes beyond the formula; counters are {few}"
    foretold = optimizer_scratch_bytes(counts.groups, optimizer)
    assert -FEW_NUMBERS_BYTES <= scratch - foretold <= few, (
        f"temporaries: {scratch - foretold} bytes beyond the formula"
    )
