"""From the last hidden state to the loss: the largest tensors of many steps."""

from collections.abc import Sequence
from functools import partial

from engine.memory.autograd.tensors import Gradients, Group, Storage, Value, share
from engine.memory.layers.modules import autocast_linear
from engine.memory.layers.step_context import StepContext, in_scope
from engine.memory.methods.registry import project
from engine.memory.workload import Workload
from engine.models.shape import ModuleShape


def head_and_loss(r: StepContext, hidden: Value) -> tuple[Value, Value | None]:
    """Simulate the output head and the loss; return the loss, and the logits where something keeps them."""
    tape = r.tape
    tape.group = Group.LOSS
    path = r.workload.loss.path
    try:
        if path == "trained_positions":
            return _trained_positions(r, hidden), None
        if path == "linear_fused":
            return _linear_fused(r, hidden), None
        return _full_logits(r, hidden)
    finally:
        tape.group = Group.ACTIVATIONS


def _head_module(r: StepContext) -> ModuleShape:
    """The output head; where it is tied, a linear layer on the embedding's weight."""
    shape = r.structure.shape
    return r.structure.head or ModuleShape(
        name="lm_head",
        kind="linear",
        parameters=0,
        in_features=shape.hidden_size,
        out_features=shape.vocab_size,
        is_output_head=True,
    )


def _full_logits(r: StepContext, hidden: Value) -> tuple[Value, Value]:
    """All logits, upcast to 32 bits, then cross-entropy.

    Source: `ForCausalLMLoss`, transformers/loss/loss_utils.py; before transformers 4.49 it shifted the logits, later
    the labels; before 4.46 each model had a loss of its own, which released the logits before the cast.
    """
    tape, loss = r.tape, r.workload.loss
    module = _head_module(r)
    positions = hidden.elements // module.in_features
    outer = tape.enter_scope()
    logits = project(r, hidden, module)
    if r.structure.shape.final_logit_softcapping is not None:
        logits = tape.soft_cap(logits)
    if loss.upcasts and not loss.holds_narrow_logits:
        logits = tape.assign(logits, tape.cast(logits, 4))
    wide = tape.cast(logits, 4 if loss.upcasts else logits.width)
    padded = tape.value(positions + r.workload.batch_size, 8)
    labels = tape.value(positions, 8)
    compared = _shifted(r, wide) if loss.shifts else wide
    value = _fused_cross_entropy(r, compared) if loss.path == "fused" else _cross_entropy(r, compared, labels)
    tape.drop(padded, labels, wide, compared)
    if loss.converts_output:
        logits = tape.assign(logits, tape.cast(logits, 4))
    tape.leave_scope(outer, (value, logits))
    return value, logits


@in_scope
def _shifted(r: StepContext, logits: Value) -> Value:
    """`logits[..., :-1, :].contiguous()`: a copy forward, and a second one of its gradient backward."""
    rows = r.workload.batch_size * (r.workload.length - 1)
    return r.tape.clone(r.tape.view(logits, logits.elements // r.tokens * rows))


@in_scope
def _cross_entropy(r: StepContext, logits: Value, labels: Value) -> Value:
    """Log-softmax and negative log-likelihood; autocast computes both at 32 bits.

    Keeps the log-probabilities; the backward pass holds them with two gradients of their size.

    Source: `nll_loss_backward` and `_log_softmax_backward_data` in derivatives.yaml.
    """
    tape = r.tape
    if r.workload.precision.autocast is not None:
        logits = tape.cast(logits, 4)
    log_probabilities = tape.operation((logits,), logits.elements, logits.width, saves_result=True)
    total_weight = tape.value(1, 4)
    return tape.operation((log_probabilities,), 1, 4, saved=(log_probabilities, labels, total_weight))


def _fused_cross_entropy(r: StepContext, logits: Value) -> Value:
    """A kernel that keeps the logits and one number a row, and writes the gradient over the logits."""
    # Source: `Fast_CrossEntropyLoss`, unsloth/kernels/cross_entropy_loss.py, also in fms-acceleration.
    statistics = r.tape.value(logits.elements // r.structure.shape.vocab_size * 2, 4)
    saved = (logits, statistics)
    loss = r.tape.operation((logits,), 1, 4, backward=lambda _: (share(logits.storage),), saved=saved)
    return r.tape.assign(statistics, loss)


@in_scope
def _linear_fused(r: StepContext, hidden: Value) -> Value:
    """Head and loss in one function that computes its gradients forward, chunk by chunk, and holds no more logits."""
    # Source: `fused_linear_cross_entropy_forward`, liger_kernel/ops/fused_linear_cross_entropy.py (arXiv:2410.10989).
    tape, shape, precision = r.tape, r.structure.shape, r.workload.precision
    width = precision.autocast or precision.head
    rows = hidden.elements // shape.hidden_size
    chunks = -(-shape.vocab_size // shape.hidden_size)
    chunk = 1 << max(0, (-(-rows // chunks) - 1).bit_length())
    weight = r.weight(shape.vocab_size * shape.hidden_size, precision.head)
    hidden = tape.cast(hidden, width)
    of_hidden = tape.value(hidden.elements, width)
    of_weight = tape.value(weight.elements if weight.trainable else 0, weight.width, group=Group.GRADIENTS)
    tape.use(min(chunk, rows) * shape.vocab_size * width, weight.size if weight.trainable else 0)

    def backward(_: Storage) -> Gradients:
        return (share(of_hidden.storage), share(of_weight.storage) if weight.trainable else None)

    return tape.operation((hidden, weight), 1, 4, backward=backward, saved=(of_hidden, of_weight))


@in_scope
def _trained_positions(r: StepContext, hidden: Value) -> Value:
    """Loratory's loss: the positions that are trained are picked out and go through the head chunk by chunk.

    Over a frozen head the gradient is made while the logits are there; over a trained one each chunk is checkpointed.

    Source: engine/training/ops/loss.py.
    """
    positions = trained_positions(r.workload)
    chosen = r.tape.operation((hidden,), positions * r.structure.shape.hidden_size, hidden.width)
    loss = r.workload.loss
    sizes = chunk_sizes(loss.chunks_of or positions, r.structure.shape.vocab_size, loss.chunk_bytes)
    return _checkpointed_chunks(r, chosen, sizes) if r.head_is_trained else _frozen_head(r, chosen, sizes)


def trained_positions(workload: Workload) -> int:
    """Positions of one pass whose next token is trained; the first token of a row is predicted from nothing."""
    predicted = workload.batch_size * max(1, workload.length - workload.virtual_inputs - 1)
    return max(1, round(predicted * workload.loss.positions_share))


def chunk_sizes(positions: int, vocab_size: int, chunk_bytes: int) -> list[int]:
    """Positions of each chunk: all equal but the last, their logits at 32 bits within `chunk_bytes`."""
    count = max(1, -(-positions * vocab_size * 4 // chunk_bytes)) if chunk_bytes else 1
    size = max(1, -(-positions // count))
    return [min(size, positions - start) for start in range(0, positions, size)]


def positions_of_larger_chunks(positions: int, vocab_size: int, chunk_bytes: int) -> int | None:
    """The longest shorter step that has one chunk less, whose chunks are the largest of all shorter steps; None for one chunk.

    A step just beyond it divides its positions among more chunks, so each is smaller: down to half where one chunk
    becomes two.
    """
    chunks = -(-positions * vocab_size * 4 // chunk_bytes) if chunk_bytes else 1
    return max(1, (chunks - 1) * chunk_bytes // (vocab_size * 4)) if chunks > 1 else None


@in_scope
def _frozen_head(r: StepContext, chosen: Value, sizes: Sequence[int]) -> Value:
    """Variables of one chunk are reassigned only once the next one's are there."""
    tape, shape, head_width = r.tape, r.structure.shape, r.workload.precision.head
    caps = shape.final_logit_softcapping is not None
    tape.value(1, 4)  # the sum
    gradient = tape.value(chosen.elements, chosen.width)
    output = slope = tape.value(0, 4)
    for rows in sizes[:2]:  # later ones find the same
        output = tape.assign(output, tape.value(rows * shape.vocab_size, head_width))
        wide = tape.alias(output) if head_width == 4 else tape.value(output.elements, 4)
        if caps:
            wide = tape.assign(wide, tape.soft_cap(tape.alias(wide)))
        tape.use_scratch(wide.elements * 4)  # logsumexp
        normalizer = tape.value(rows, 4)
        new_slope = wide
        if caps:
            difference = tape.value(wide.elements, 4)
            new_slope = tape.assign(difference, tape.value(wide.elements, 4))
            tape.use(wide.elements * 4, wide.elements * 4)
            tape.drop(wide)
        slope = tape.assign(slope, new_slope)
        tape.use(rows * shape.hidden_size * head_width)
        tape.drop(normalizer)
    elements, width = chosen.elements, chosen.width

    def backward(_: Storage) -> Gradients:
        wide_gradient = tape.allocate(elements * 4 if width < 4 else 0)
        scaled = tape.allocate(elements * 4)
        tape.release(wide_gradient)
        if width == 4:
            return (scaled,)
        result = tape.allocate(elements * width)
        tape.release(scaled)
        return (result,)

    return tape.operation((chosen,), 1, 4, backward=backward, saved=(gradient,))


@in_scope
def _checkpointed_chunks(r: StepContext, chosen: Value, sizes: Sequence[int]) -> Value:
    """Each chunk through head and loss, kept as nothing but its input, and run again in the backward pass."""
    tape, shape = r.tape, r.structure.shape
    weight = r.weight(shape.vocab_size * shape.hidden_size, r.workload.precision.head)
    weight.trainable = True

    @in_scope
    def loss_of_chunk(r: StepContext, piece: Value, rows: int) -> Value:
        logits = autocast_linear(r, piece, weight, shape.vocab_size)
        return _cross_entropy(r, tape.assign(logits, tape.cast(logits, 4)), r.small(rows, 8))

    total = tape.value(1, 4)
    for rows in sizes:
        piece = tape.view(chosen, rows * shape.hidden_size)
        loss = tape.checkpointed(partial(loss_of_chunk, r, piece, rows), piece, reentrant=False)
        total = tape.assign(total, tape.add(total, loss))
    return total
