"""Tiny real models whose dimensions share no factor, so no two tensors of a step have the same size by chance."""

from dataclasses import dataclass, field
from functools import partial

import torch

from loratory.engine.config.run import AdapterConfig
from loratory.engine.memory.phases import StepRules, simulate_step
from loratory.engine.memory.structure import find_targets, read_structure
from loratory.engine.memory.workload import StepPrecision
from tests.benchmarks.published.other_trainers import PlainLoss, PlainTape, PlainWorkload, simulate_plain_step
from tests.memory.live_bytes import LiveBytes

HIDDEN, INNER, VOCABULARY, HEADS, KEY_HEADS, HEAD_DIM, LAYERS = 66, 101, 211, 6, 2, 14, 3
BATCH, LENGTH = 3, 17


LORA = AdapterConfig(r=7, target_modules=("q_proj", "k_proj", "v_proj", "o_proj"))


@dataclass(frozen=True)
class Case:
    """A step that is run for real and simulated."""

    adapter: AdapterConfig = LORA
    dtype: torch.dtype = torch.bfloat16
    attention: str = "sdpa"
    checkpointing: str = "none"
    model_type: str = "llama"
    base: str = "dense"
    config: dict = field(default_factory=dict)

    @property
    def width(self):
        return torch.finfo(self.dtype).bits // 8


def build_config(case):
    """Return the configuration of the tiny model."""
    from transformers import AutoConfig

    values = {
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KEY_HEADS,
        "head_dim": HEAD_DIM,
        "tie_word_embeddings": False,
        "max_position_embeddings": 512,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **case.config,
    }
    return AutoConfig.for_model(case.model_type, **values)


def build_model(case):
    """Build the real model with its adapter, ready to train."""
    from transformers import AutoModelForCausalLM

    config = build_config(case)
    config._attn_implementation = case.attention
    model = AutoModelForCausalLM.from_config(config, dtype=case.dtype)
    model.config.use_cache = False
    model = add_adapter(model, case.adapter)
    if case.checkpointing != "none":
        reentrant = case.checkpointing == "reentrant"
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": reentrant})
        if case.adapter.method != "none":
            model.enable_input_require_grads()
    model.train()
    return model


def add_adapter(model, adapter):
    """PEFT's adapter as Loratory configures it."""
    from peft import IA3Config, LoraConfig, PrefixTuningConfig, get_peft_model

    targets = adapter.target_modules if isinstance(adapter.target_modules, str) else list(adapter.target_modules)
    if adapter.method == "none":
        return model
    if adapter.method == "ia3":
        ours = IA3Config(target_modules=targets, feedforward_modules=["down_proj"], task_type="CAUSAL_LM")
    elif adapter.method == "prefix_tuning":
        ours = PrefixTuningConfig(num_virtual_tokens=adapter.num_virtual_tokens, task_type="CAUSAL_LM")
    else:
        ours = LoraConfig(
            r=adapter.r,
            lora_alpha=2 * adapter.r,
            lora_dropout=adapter.lora_dropout,
            target_modules=targets,
            use_dora=adapter.use_dora,
            task_type="CAUSAL_LM",
        )
    return get_peft_model(model, ours)


def shape_of(case):
    """Return the inventory that the estimate sees."""
    from loratory.engine.inspector.worker.inventory import inventory_of

    return inventory_of(build_config(case).to_dict())


def workload_of(case):
    """Return the step as a workload of plain transformers: a custom loop that holds the model's output."""
    width = case.width
    return PlainWorkload(
        adapter=case.adapter,
        batch_size=BATCH,
        length=LENGTH,
        device="cpu",
        base=case.base,
        precision=StepPrecision(
            width, width, width, width, width, adapter=width if case.adapter.method == "none" else 4
        ),
        attention="eager" if case.attention == "eager" else "cpu_flash",
        checkpointing=case.checkpointing != "none",
        reentrant=case.checkpointing == "reentrant",
        loss=PlainLoss(holds_logits=True),
    )


def trace(model, step, *, accumulates=False):
    """Run a step once to make everything ready, then again under observation; returns the peaks of its phases.

    Args:
        step: A function of a context manager for phases; it runs forward and backward and returns what stays alive.
        accumulates: The gradients of the first run are still there in the second.
    """
    from contextlib import nullcontext

    step(lambda _: nullcontext())
    if not accumulates:
        model.zero_grad(set_to_none=True)
    watch = LiveBytes()
    with watch:
        output = step(watch.phase)
    del output
    return watch.peaks


def plain_step(model):
    """Forward and backward of transformers' own loss, with the output held as custom loops do."""
    tokens = torch.randint(3, VOCABULARY, (BATCH, LENGTH))

    def step(phase):
        with phase("forward"):
            output = model(input_ids=tokens, labels=tokens)
        with phase("backward"):
            output.loss.backward()
        return output

    return step


def loss_alone_step(model):
    """Hold the loss alone of the output, as transformers' trainer does."""
    tokens = torch.randint(3, VOCABULARY, (BATCH, LENGTH))

    def step(phase):
        with phase("forward"):
            loss = model(input_ids=tokens, labels=tokens).loss
        with phase("backward"):
            loss.backward()
        return loss

    return step


def simulate(case, workload=None, shape=None):
    """Peaks of the same phases, from sizes alone."""
    workload = workload or workload_of(case)
    shape = shape or shape_of(case)
    structure = read_structure(shape)
    targets = find_targets(shape, workload.adapter)
    if isinstance(workload, PlainWorkload):
        step = simulate_plain_step(structure, workload, targets, is_watched=True)
    else:
        step = simulate_step(structure, workload, targets, StepRules(partial(PlainTape, is_watched=True)))
    peaks = {name: memory.total for name, memory in step.peaks.items()}
    return {
        "forward": peaks["forward"],
        "backward": max(peaks["loss_backward"], peaks["layer_backward"]),
    }
