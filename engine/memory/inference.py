"""What a model needs to answer, without any training: weights, the cache of keys and values, one prompt's passage."""

from dataclasses import replace

from engine.config.adapter import AdapterConfig
from engine.memory.embedding import embed
from engine.memory.layers import decoder_layer, residual_width
from engine.memory.peak import workspace_bytes
from engine.memory.persistent import base_weight_bytes
from engine.memory.rehearsal import Rehearsal
from engine.memory.structure import LayerStructure, ModelStructure
from engine.memory.tape import Tape
from engine.memory.targets import AdapterTargets
from engine.memory.workload import Precision, Workload

_NO_TARGETS = AdapterTargets(modules=())


def inference_workload(workload: Workload) -> Workload:
    """One conversation as long as a row, on frozen weights in the precision that products are computed in."""
    width = workload.precision.compute
    return replace(
        workload,
        adapter=AdapterConfig(),
        batch_size=1,
        joined=False,
        masked=False,
        fills_up_to=1,
        checkpointing="none",
        accumulates=False,
        precision=Precision(width, width, width, width, width, adapter=width),
    )


def inference_bytes(structure: ModelStructure, workload: Workload, device_name: str = "") -> int:
    """Tensors at the peak of answering a prompt that fills the context.

    Args:
        workload: As `inference_workload` gives it.

    Source: `DynamicCache` in transformers/cache_utils.py: keys and values of every layer, and those of one layer twice
    while new ones are put behind them; `GenerationMixin`, which asks for the logits of the last position and casts them
    to 32 bits.
    """
    shape, width = structure.shape, workload.precision.compute
    passage = max(_passage(structure, workload, layer) for layer in structure.layers)
    logits = shape.vocab_size * (workload.precision.head + 4)
    cache = 2 * workload.tokens * shape.num_key_value_heads * shape.head_dim * width
    return (
        sum(base_weight_bytes(structure, workload))
        + cache * (shape.num_hidden_layers + 1)
        + max(passage, logits)
        + workspace_bytes(workload, device_name)
    )


def _passage(structure: ModelStructure, workload: Workload, layer: LayerStructure) -> int:
    """What passes through one layer, with what all layers are given."""
    width = residual_width(_empty_stage(structure, workload))
    r = _empty_stage(structure, workload)
    _, passing = embed(r)
    x = r.tape.value(r.tokens * structure.shape.hidden_size, width)
    decoder_layer(r, x, layer)
    return r.tape.peak + passing.arguments


def _empty_stage(structure: ModelStructure, workload: Workload) -> Rehearsal:
    tape = Tape()
    tape.records_gradients = False
    return Rehearsal(tape, workload, structure, _NO_TARGETS, frozenset())
