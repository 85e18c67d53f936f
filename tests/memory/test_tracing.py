"""The simulation of a step against the step itself, to the byte. A test fails here when a library changes what it keeps."""

from dataclasses import replace

import pytest
import torch

from engine.config.run import AdapterConfig
from tests.benchmarks.published.other_trainers import PlainLoss
from tests.memory.traced_steps import Case, build_model, loss_alone_step, plain_step, simulate, trace, workload_of

QKVO = ("q_proj", "k_proj", "v_proj", "o_proj")
LORA = AdapterConfig(r=7, target_modules=QKVO)
LORA_EVERYWHERE = AdapterConfig(r=7, lora_dropout=0.1)
IA3 = AdapterConfig(method="ia3", target_modules=("k_proj", "v_proj", "down_proj"))
FULL = AdapterConfig(method="none")

CASES = {
    "LoRA": Case(LORA),
    "LoRA at 32 bits": Case(LORA, dtype=torch.float32),
    "LoRA on all linear layers with dropout": Case(LORA_EVERYWHERE),
    "LoRA, eager attention": Case(LORA, attention="eager"),
    "LoRA, checkpointed": Case(LORA, checkpointing="non_reentrant"),
    "LoRA on all linear layers with dropout, checkpointed": Case(LORA_EVERYWHERE, checkpointing="non_reentrant"),
    "LoRA, checkpointed reentrant": Case(LORA, checkpointing="reentrant"),
    "LoRA, checkpointed, eager attention, 32 bits": Case(
        LORA, dtype=torch.float32, attention="eager", checkpointing="non_reentrant"
    ),
    "IA3": Case(IA3),
    "IA3 at 32 bits, checkpointed": Case(IA3, dtype=torch.float32, checkpointing="non_reentrant"),
    "full": Case(FULL),
    "full at 32 bits": Case(FULL, dtype=torch.float32),
    "full, checkpointed": Case(FULL, checkpointing="non_reentrant"),
    "one head for all queries": Case(LORA, config={"num_key_value_heads": 1}),
    "a head for each query": Case(LORA, config={"num_key_value_heads": 6}),
    "Qwen2's biases": Case(LORA, model_type="qwen2"),
    "Qwen3's norms over heads": Case(LORA, model_type="qwen3"),
    "Qwen3, checkpointed": Case(LORA, model_type="qwen3", checkpointing="non_reentrant"),
    "Phi-3's fused projections": Case(
        AdapterConfig(r=7, target_modules=("qkv_proj", "o_proj")), model_type="phi3", config={"hidden_size": 84}
    ),
    "Mistral, all linear layers": Case(LORA_EVERYWHERE, model_type="mistral"),
}


LOSS_ALONE = (
    "LoRA",
    "LoRA at 32 bits",
    "LoRA, checkpointed",
    "LoRA, checkpointed reentrant",
    "IA3",
    "full",
    "full at 32 bits",
)


@pytest.mark.parametrize("name", LOSS_ALONE)
def test_simulation_is_equal_where_the_loss_alone_is_held(name):
    case = CASES[name]
    torch.manual_seed(0)
    model = build_model(case)

    measurement = trace(model, loss_alone_step(model))

    assert simulate(case, replace(workload_of(case), loss=PlainLoss())) == measurement


@pytest.mark.exhaustive(quick=2)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_simulation_is_equal_to_the_real_step_to_the_byte(case):
    torch.manual_seed(0)
    model = build_model(case)

    measurement = trace(model, plain_step(model))

    assert simulate(case) == measurement
