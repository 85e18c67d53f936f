"""What a decoder computes before its first layer: token embeddings, positions, masks."""

from typing import NamedTuple

from engine.memory.autograd.operations import assign, cast, concatenate, dropout
from engine.memory.autograd.tensors import Parameter, Value
from engine.memory.layers.step_context import StepContext
from engine.memory.methods.registry import MEMORY_RULES
from engine.memory.workload import Workload


class Passing(NamedTuple):
    """Bytes that are alive with the first layer's input, but not on the tape.

    Attributes:
        inputs_embeds: A variable of the model's forward pass, alive until its last layer has run.
        arguments: Positions and mask, which every layer gets; checkpointed layers hold on to them.
    """

    inputs_embeds: int
    arguments: int


def embed(r: StepContext) -> tuple[Value, Passing]:
    """Look the tokens up; the angles of the rotary embedding stay through the step.

    Source: `LlamaModel.forward`, which holds `inputs_embeds` and `position_embeddings` while the layers run;
    `GPTBigCodeModel.forward` drops out of the embeddings.
    """
    tape, workload, shape = r.tape, r.workload, r.structure.shape
    width = workload.precision.embeddings
    virtual_inputs = workload.virtual_inputs if workload.holds_embeddings else 0
    x = tape.value((workload.tokens - workload.batch_size * virtual_inputs) * shape.hidden_size, width)
    if not workload.trains_adapter and workload.holds_embeddings:
        weight = r.weight(shape.vocab_size * shape.hidden_size, width)
        x.producer = tape.node((weight,), lambda _: (tape.allocate(weight.elements * width),))
    elif virtual_inputs:
        x = _after_virtual_inputs(r, x)
    elif input_is_leaf(workload):
        # A leaf keeps its own gradient.
        x.producer = Parameter(x.elements, width, trainable=True)
    if shape.rotary:
        angles = r.position_count * shape.head_dim
        tape.use(r.position_count * 8, angles * 4 * 4)
        tape.value(angles, width)
        tape.value(angles, width)
    if workload.adapter.traits.virtual_tokens == "keys_and_values":
        # The attention mask with a place for each learned position, and the part of it that is new.
        columns = workload.key_length + workload.adapter.num_virtual_tokens
        mask = tape.value(workload.batch_size * columns, 4)
        r.hold_until_forward_ends(mask)
        tape.drop(mask)
    # Learned positions are variables of the model's forward pass too.
    inputs_embeds = 0 if shape.rotary else r.position_count * shape.hidden_size * width
    if shape.embedding_dropout > 0:
        before = x
        x = dropout(tape, before, on_cuda=r.on_cuda)
        tape.drop(before)
        inputs_embeds += before.storage.size
    return x, Passing(inputs_embeds, _argument_bytes(r))


def _after_virtual_inputs(r: StepContext, words: Value) -> Value:
    """Put learned embeddings before those of each row; where layers are checkpointed, the latter are a leaf.

    Source: `PeftModelForCausalLM.forward`, peft/peft_model.py, whose variables last as long as the forward pass.
    """
    tape, workload = r.tape, r.workload
    is_leaf = workload.checkpointing != "none"
    if is_leaf:
        words.producer = Parameter(words.elements, words.width, trainable=True)
    learned = MEMORY_RULES[workload.adapter.method].virtual_inputs(r)
    one_row = learned.elements * learned.width
    prompts = tape.operation(
        (learned,),
        elements=workload.batch_size * learned.elements,
        width=learned.width,
        backward=lambda _: (tape.allocate(one_row),),
    )
    tape.drop(learned)
    prompts = assign(tape, prompts, cast(tape, prompts, words.width))
    x = concatenate(tape, prompts, words, saved=(words,) if is_leaf else ())
    r.hold_until_forward_ends(prompts)
    tape.drop(prompts, words)
    return x


def input_needs_gradient(workload: Workload) -> bool:
    """Return whether the first layer's input takes part in the backward pass although the embeddings are frozen."""
    return input_is_leaf(workload) or bool(workload.virtual_inputs)


def input_is_leaf(workload: Workload) -> bool:
    """Whether the first layer's input takes part in the backward pass although nothing before it is trained.

    Checkpointed layers need that (`enable_input_require_grads`), and the Trainer sees to it. What arrives from another
    device has trained layers before it.
    """
    if not workload.holds_embeddings:
        return True
    return workload.checkpointing != "none" and workload.trains_adapter and not workload.virtual_inputs


def _argument_bytes(r: StepContext) -> int:
    workload = r.workload
    # Joined rows bring their positions along.
    positions = 0 if workload.joined else r.position_count * 8
    mask = workload.batch_size * workload.length * workload.key_length
    # Layers that see a window have a mask of their own.
    mask *= max(1, len(set(r.structure.shape.layer_types)))
    if workload.attention == "eager":
        return positions + mask * workload.precision.embeddings
    return positions + (mask if workload.masked else 0)
