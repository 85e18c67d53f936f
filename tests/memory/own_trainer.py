"""Steps of Loratory's own trainer on tiny real models, with its batches, its attention, its LoRA and its loss."""

import contextlib
import random
import types
from dataclasses import dataclass
from typing import Any

import torch

from loratory.engine.config.load import config_from_mapping
from loratory.engine.data.contract import RowLengths
from loratory.engine.hardware.device import Device
from loratory.engine.inspector.worker.inventory import inventory_of
from loratory.engine.memory.workload import workload_of_step
from tests.memory.traced_steps import BATCH, LENGTH, VOCABULARY, Case, build_config

# Sizes that 4-bit blocks and the CPU's kernels for them take.
ROUND_SIZES = {"hidden_size": 128, "intermediate_size": 192, "head_dim": 16, "num_attention_heads": 8}


@dataclass(frozen=True)
class Row:
    """A row of which every token is learned."""

    input_ids: list
    labels: list


@dataclass(frozen=True)
class OwnStep:
    """A model that is ready to train, one pass through it, and the estimate's view of both."""

    model: torch.nn.Module
    step: object
    workload: object
    shape: object


def prepare(overrides, *, batch=BATCH, length=LENGTH, shared=0, sizes=None, folder=None, model_type="llama"):
    """Assemble a model as the worker does.

    Args:
        overrides: Settings by dotted name.
        shared: Tokens that each two rows, the answers of a pair, begin with; 0 where rows are no pairs.
        model_type: The architecture.
        folder: Takes the weights of a quantized base, which is loaded from there.
    """
    from transformers import AutoModelForCausalLM

    from loratory.engine.training.assembly import assemble
    from loratory.engine.training.batching.batches import join, join_shared, pad
    from loratory.engine.training.build import add_adapter, load_model
    from loratory.engine.training.placement import Placement, choose_precision

    config = _config(overrides, batch // 2 if shared else batch, length)
    device = Device("cpu", 0, "cpu", 2**35, 2**35, has_fast_bfloat16=True)
    precision = choose_precision(config, device)
    placement = Placement(device, torch.device("cpu"))
    architecture = build_config(Case(config=sizes or {}, model_type=model_type))
    shape = inventory_of(architecture.to_dict())
    torch.manual_seed(0)
    source = types.SimpleNamespace(name="tiny", hub_id=None, location=str(folder), revision=None)
    model = AutoModelForCausalLM.from_config(architecture, dtype=precision.frozen)
    if config.model.quantization != "none":
        model.save_pretrained(folder)
        model = load_model(source, config, precision, placement)
    model.config.use_cache = False
    model = add_adapter(model, config, source)
    tokens = [random.Random(row).choices(range(3, VOCABULARY), k=length) for row in range(batch)]
    for first, second in zip(tokens[::2], tokens[1::2], strict=False):
        second[:shared] = first[:shared]
    rows = [Row(ids, list(ids)) for ids in tokens]
    lengths = None
    if shared:
        pairs = batch // 2
        lengths = RowLengths(
            tokens=(length,) * batch, trained=(length,) * batch, count=pairs, per_row=2, shared=(shared,) * pairs
        )
    assembly = assemble(model, config, precision, placement, rows, 0)
    assert not assembly.notes
    if config.training.gradient_checkpointing:
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
        if config.adapter.method != "none":
            model.enable_input_require_grads()
    model.train()
    settings = assembly.setup.settings
    assert settings.shares_prompts == bool(shared)
    pairs = list(zip(rows[::2], rows[1::2], strict=False))
    joined = join_shared(pairs) if shared else join(rows)
    batch = joined if settings.batching == "joined" else pad(rows, 0)
    autocast = assembly.setup.autocast

    def step(phase):
        context = torch.autocast("cpu", dtype=autocast) if autocast else contextlib.nullcontext()
        with assembly.setup.method.step(model):
            with phase("forward"), context:
                loss = model(**batch.inputs, trained_tokens=batch.trained)
            with phase("backward"):
                loss.backward()
        return loss

    return OwnStep(model, step, workload_of_step(shape, config, device, lengths), shape)


def _config(overrides, batch, length):
    values: dict[str, dict[str, Any]] = {
        "model": {"id": "tiny"},
        "adapter": {"r": 7},
        "dataset": {"source": "rows"},
        "training": {
            "per_device_train_batch_size": batch,
            "gradient_accumulation_steps": 1,
            "max_length": length,
        },
    }
    for name, value in overrides.items():
        section, _, key = name.partition(".")
        values[section][key] = value
    return config_from_mapping(values)
