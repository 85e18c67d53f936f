"""From the last hidden state to the loss: the largest tensors of many steps."""

from collections.abc import Sequence
from functools import partial

from loratory.engine.memory.autograd.tensors import Gradients, Node, Storage, Value, share
from loratory.engine.memory.layers.modules import autocast_linear
from loratory.engine.memory.layers.step_context import StepContext, in_scope
from loratory.engine.memory.workload import Workload


@in_scope
def cross_entropy(r: StepContext, logits: Value, labels: Value, losses: int = 1) -> Value:
    """Log-softmax and negative log-likelihood; autocast computes both at 32 bits.

    Keeps the log-probabilities; the backward pass holds them with two gradients of their size.

    Source: `nll_loss_backward` and `_log_softmax_backward_data` in derivatives.yaml.
    """
    tape = r.tape
    if r.workload.precision.autocast is not None:
        logits = tape.cast(logits, 4)
    log_probabilities = tape.operation((logits,), logits.elements, logits.width, saves_result=True)
    total_weight = tape.value(1, 4)
    return tape.operation((log_probabilities,), losses, 4, saved=(log_probabilities, labels, total_weight))


@in_scope
def loss_of_trained_positions(r: StepContext, hidden: Value) -> Value:
    """Loratory's loss: the positions that are trained are picked out and go through the head chunk by chunk.

    Over a frozen head the gradient is made while the logits are there; over a trained one each chunk is checkpointed.

    Source: engine/training/ops/loss.py.
    """
    positions = trained_positions(r.workload)
    chosen = r.tape.operation((hidden,), positions * r.structure.shape.hidden_size, hidden.width)
    loss = r.workload.loss
    vocabulary, width = r.structure.shape.vocab_size, logit_width(r.workload, head_is_trained=r.head_is_trained)
    sizes = chunk_sizes(loss.chunks_of or positions, vocabulary, loss.chunk_bytes, width)
    return _checkpointed_chunks(r, chosen, sizes) if r.head_is_trained else _frozen_head(r, chosen, sizes)


def logit_width(workload: Workload, *, head_is_trained: bool) -> int:
    """Return the bytes of a logit that chunks are sized for: the kernel over a frozen head never holds logits at 32 bits."""
    return workload.precision.head if workload.loss.fused and not head_is_trained else 4


def trained_positions(workload: Workload) -> int:
    """Positions of one pass whose next token is trained; the first token of a row is predicted from nothing."""
    positions = workload.batch_size * max(1, workload.length - workload.virtual_inputs - 1)
    return positions if workload.trained_tokens is None else max(1, min(workload.trained_tokens, positions))


def chunk_sizes(positions: int, vocab_size: int, chunk_bytes: int, width: int = 4) -> list[int]:
    """Positions of each chunk: all equal but the last, their logits of `width` bytes each within `chunk_bytes`."""
    count = max(1, -(-positions * vocab_size * width // chunk_bytes)) if chunk_bytes else 1
    size = max(1, -(-positions // count))
    whole, rest = divmod(positions, size)
    return [size] * whole + [rest] * (rest > 0)


def positions_of_larger_chunks(positions: int, vocab_size: int, chunk_bytes: int, width: int = 4) -> int | None:
    """Return the positions of the longest step with one chunk less: its chunks are the largest of all shorter steps.

    A step just beyond it divides its positions among more chunks, so each is smaller: down to half where one chunk
    becomes two.
    """
    chunks = -(-positions * vocab_size * width // chunk_bytes) if chunk_bytes else 1
    return max(1, (chunks - 1) * chunk_bytes // (vocab_size * width)) if chunks > 1 else None


@in_scope
def _frozen_head(r: StepContext, chosen: Value, sizes: Sequence[int]) -> Value:
    """Variables of one chunk are reassigned only once the next one's are there."""
    tape, shape, head_width = r.tape, r.structure.shape, r.workload.precision.head
    caps = shape.final_logit_softcapping is not None
    tape.value(sum(sizes), 4)  # the loss of each
    gradient = tape.value(chosen.elements, chosen.width)
    output = slope = tape.value(0, 4)
    for rows in sizes[:2]:  # later ones find the same
        if r.workload.loss.fused:  # nothing of a chunk is left when the next one begins
            losses = tape.value(2 * rows, 4)
            tape.use(rows * shape.vocab_size * head_width, rows * shape.hidden_size * head_width)
            tape.drop(losses)
            continue
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
        if r.workload.loss.fused:

            def in_place(_: Storage) -> Gradients:
                """Write the gradient over the logits, which are those of the recomputed pass."""
                assert isinstance(node, Node)
                return (share(node.saved[0]),)

            loss = tape.operation((logits,), rows, 4, backward=in_place, saved=(logits, tape.value(rows, 4)))
            node = loss.producer
            return loss
        return cross_entropy(r, tape.assign(logits, tape.cast(logits, 4)), r.small(rows, 8), rows)

    pieces = []
    for rows in sizes:
        piece = tape.view(chosen, rows * shape.hidden_size)
        pieces.append(tape.checkpoint(partial(loss_of_chunk, r, piece, rows), piece))
    losses = tape.concatenate(*pieces)
    return tape.operation((losses,), 1, 4, backward=lambda gradient: (share(gradient),))
