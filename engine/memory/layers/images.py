"""What sees images: layers over patches, then a projector, whose output takes the places of image tokens.

Each family prepares its pixels and shuffles its patches in a way of its own. Known of all are the layers, which are like a
decoder's, and the products of the projector.

Source: `Idefics3Model.get_image_features`, transformers/models/idefics3/modeling_idefics3.py; modeling_qwen2_vl.py.
"""

import math
from dataclasses import replace
from functools import partial

from loratory.engine.config.run import AdapterConfig
from loratory.engine.config.vision import PartTraining
from loratory.engine.memory.autograd.tensors import Value
from loratory.engine.memory.layers.decoder import decoder_layer
from loratory.engine.memory.layers.modules import normalize
from loratory.engine.memory.layers.step_context import StepContext, in_scope
from loratory.engine.memory.methods.registry import project
from loratory.engine.memory.structure import read_structure
from loratory.engine.memory.tower import Tower

_FROZEN, _FULL = AdapterConfig(), AdapterConfig(method="none")


@in_scope
def with_images(r: StepContext, x: Value, tower: Tower) -> Value:
    """Return the hidden states of tokens with what images become in their places; both are kept to the end of the forward pass."""
    tape, vision = r.tape, r.workload.vision
    tape.records_gradients = vision.tower != "frozen"
    states = _see(_context(r, tower, vision.tower), tower)
    tape.records_gradients = vision.trains_part
    features = _as_tokens(_context(r, tower, vision.projector), tower, states, r.structure.shape.hidden_size)
    tape.records_gradients = True
    for value in (states, features):
        r.hold_until_forward_ends(value)
    places = tape.value(r.tokens, 1)
    return tape.operation((x, features), x.elements, x.width, saved=(places,))


def _context(r: StepContext, tower: Tower, training: PartTraining) -> StepContext:
    """Return the context of a part, of which all weights are trained, adapters, or none."""
    workload, patches = r.workload, max(1, r.workload.pixels // tower.patch_pixels)
    at_once = tower.patches_at_once
    length = at_once if at_once and patches % at_once == 0 else patches
    precision = workload.precision
    if training == "full":  # what is trained is held at 32 bits
        precision = replace(precision, weights=4, embeddings=4, norms=4)
    adapters = {"full": _FULL, "frozen": _FROZEN, "adapter": workload.adapter}
    own = replace(
        workload,
        adapter=adapters[training],
        precision=precision,
        batch_size=patches // length,
        length=length,
        joined=False,
        joined_lengths=(),
        fills_up_to=1,
        masked=False,
    )
    return replace(r, workload=own, structure=read_structure(tower.shape))


@in_scope
def _see(r: StepContext, tower: Tower) -> Value:
    """Run the layers over patches. Frozen ones keep nothing, so one of each kind stands for all."""
    tape, structure, precision = r.tape, r.structure, r.workload.precision
    elements = r.tokens * structure.shape.hidden_size
    width = precision.autocast or precision.embeddings
    is_copied = tower.pads_images or width < 4  # the processor's own are as wide
    pixels = tape.value(r.tokens * math.prod(tower.patch) if is_copied else 0, width)
    weight = r.weight(structure.shape.hidden_size * math.prod(tower.patch), precision.weights)
    factor = weight if weight.width == width else r.cast_weight(weight, width)
    x = tape.operation((pixels, factor), elements, width, saved=(pixels,))
    x = tape.assign(x, tape.cast(x, precision.embeddings))
    for layer in structure.layers:
        run = partial(decoder_layer, r, layer=layer)
        for _ in range(layer.count if tape.records_gradients else 1):
            is_repeated = r.workload.checkpointing and tape.records_gradients
            x = tape.assign(x, tape.checkpoint(partial(run, x), x) if is_repeated else run(x))
    return normalize(r, x, structure.final_norms[0]) if structure.final_norms else x


@in_scope
def _as_tokens(r: StepContext, tower: Tower, states: Value, hidden_size: int) -> Value:
    """Run the products of the projector in turn; each that answers in the size of tokens begins again with the hidden states of patches."""
    tape, tokens = r.tape, max(1, r.tokens // tower.patches_per_token)
    features, present = list[Value](), tape.alias(states)
    for module in tower.projector:
        if module.kind != "linear":
            continue
        if present.elements != tokens * module.in_features or not features:  # patches are put together
            present = tape.operation((present,), tokens * module.in_features, present.width)
        present = project(r, present, module)
        if module.out_features == hidden_size:
            features.append(present)
            present = tape.alias(states)
        else:
            present = tape.pointwise(present)
    if not features:
        return tape.operation((present,), tokens * hidden_size, present.width, saved=(present,))
    return tape.concatenate(*features) if len(features) > 1 else features[0]
