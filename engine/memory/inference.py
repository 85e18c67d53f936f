"""What a model needs to answer, without any training: weights, the cache of keys and values, one prompt's passage."""

from dataclasses import replace

from engine.config.run import AdapterConfig
from engine.memory.autograd.tape import Tape
from engine.memory.layers.decoder import decoder_layer, residual_width
from engine.memory.layers.embedding import embed
from engine.memory.layers.step_context import StepContext
from engine.memory.peak import workspace_bytes
from engine.memory.persistent import base_weight_bytes
from engine.memory.structure import LayerStructure, ModelStructure
from engine.memory.targets import AdapterTargets
from engine.memory.workload import Precision, Workload
from engine.models.shape import ModelShape

PIECE_TOKENS = 512  # engine/chat/weights.py

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

    Source: `Answer`, engine/chat/answer.py, which reads the prompt in pieces and asks for the logits of its last position;
    `AdaptedBase.forward`, which casts them to 32 bits.
    """
    shape = structure.shape
    passage = max(_passage(structure, workload, layer) for layer in structure.layers)
    logits = shape.vocab_size * (workload.precision.head + 4)
    return (
        sum(base_weight_bytes(structure, workload))
        + cache_bytes(shape, workload)
        + max(passage, logits)
        + workspace_bytes(workload, device_name)
    )


def cache_bytes(shape: ModelShape, workload: Workload) -> int:
    """Bytes of what the layers remember of a conversation, at most.

    A layer that sees all tokens keeps the keys and values of all. One with a window keeps what its window lacks of the last
    piece, in the tensor that has both. The largest of these is there twice, while new ones are put behind it. States of
    constant size are held at 32 bits.

    Source: `DynamicLayer`, `DynamicSlidingWindowLayer` and `LinearAttentionLayer`, transformers/cache_utils.py.
    """
    tokens = workload.tokens
    limits = (None,) * shape.num_hidden_layers if shape.kept_tokens is None else shape.kept_tokens
    kept = [tokens if window is None else min(tokens, window - 1 + PIECE_TOKENS) for window in limits]
    a_token = 2 * shape.num_key_value_heads * shape.head_dim * workload.precision.compute
    return a_token * (sum(kept) + max(kept, default=0)) + 4 * shape.state_elements


def _passage(structure: ModelStructure, workload: Workload, layer: LayerStructure) -> int:
    """What passes through one layer, with what all layers are given."""
    width = residual_width(_empty_stage(structure, workload))
    r = _empty_stage(structure, workload)
    _, passing = embed(r)
    x = r.tape.value(r.tokens * structure.shape.hidden_size, width)
    decoder_layer(r, x, layer)
    return r.tape.peak + passing.arguments


def _empty_stage(structure: ModelStructure, workload: Workload) -> StepContext:
    tape = Tape()
    tape.records_gradients = False
    return StepContext(tape, workload, structure, _NO_TARGETS, frozenset())
