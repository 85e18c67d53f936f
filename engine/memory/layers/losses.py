"""From the last hidden state to the loss: the largest tensors of many steps."""

from engine.memory.autograd.operations import add, assign, cast, clone, narrow, pointwise, scale, share
from engine.memory.autograd.tensors import Gradients, Group, Storage, Value
from engine.memory.layers.projections import autocast_linear
from engine.memory.layers.step_context import StepContext
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


def head_module(r: StepContext) -> ModuleShape:
    """The output head; where it is tied, a linear layer on the embedding's weight."""
    shape = r.structure.shape
    head = r.structure.head
    if head is not None:
        return head
    return ModuleShape(
        name="lm_head",
        kind="linear",
        parameters=0,
        in_features=shape.hidden_size,
        out_features=shape.vocab_size,
        is_output_head=True,
    )


def _full_logits(r: StepContext, hidden: Value) -> tuple[Value, Value | None]:
    """All logits, upcast to 32 bits, then cross-entropy.

    Source: `ForCausalLMLoss`, transformers/loss/loss_utils.py; before transformers 4.49 it shifted the logits, later
    the labels; before 4.46 each model had a loss of its own, which released the logits before the cast.
    """
    tape, loss = r.tape, r.workload.loss
    module = head_module(r)
    positions = hidden.elements // module.in_features
    with tape.scope() as scope:
        logits = project(r, hidden, module)
        if r.structure.shape.final_logit_softcapping is not None:
            logits = _soft_capped(r, logits)
        if loss.upcasts and not loss.holds_narrow_logits:
            logits = assign(r.tape, logits, cast(tape, logits, 4))
        wide = cast(tape, logits, 4 if loss.upcasts else logits.width)
        padded = tape.value(positions + r.workload.batch_size, 8)
        labels = tape.value(positions, 8)
        compared = _shifted(r, wide) if loss.shifts else wide
        value = _fused_cross_entropy(r, compared) if loss.path == "fused" else _cross_entropy(r, compared, labels)
        tape.drop(padded, labels, wide, compared)
        if loss.converts_output:
            logits = assign(r.tape, logits, cast(tape, logits, 4))
        return scope.returns(value), scope.returns(logits)


def _shifted(r: StepContext, logits: Value) -> Value:
    """`logits[..., :-1, :].contiguous()`: a copy forward, and a second one of its gradient backward."""
    tape = r.tape
    with tape.scope() as scope:
        rows = r.workload.batch_size * (r.workload.length - 1)
        fewer = logits.elements // r.tokens * rows
        return scope.returns(clone(tape, narrow(tape, logits, fewer)))


def _soft_capped(r: StepContext, logits: Value) -> Value:
    tape = r.tape
    divided = scale(tape, logits)
    tape.drop(logits)
    bounded = pointwise(tape, divided, saves_result=True)
    tape.drop(divided)
    result = scale(tape, bounded)
    tape.drop(bounded)
    return result


def _cross_entropy(r: StepContext, logits: Value, labels: Value) -> Value:
    """Log-softmax and negative log-likelihood; autocast computes both at 32 bits.

    Keeps the log-probabilities; the backward pass holds them with two gradients of their size.

    Source: `nll_loss_backward` and `_log_softmax_backward_data` in derivatives.yaml.
    """
    tape = r.tape
    with tape.scope() as scope:
        if r.workload.precision.autocast is not None:
            logits = cast(tape, logits, 4)
        size = logits.elements * logits.width

        def backward(_: Storage) -> Gradients:
            return (tape.allocate(size),)

        log_probabilities = tape.operation(
            (logits,), elements=logits.elements, width=logits.width, backward=backward, saves_result=True
        )
        total_weight = tape.value(1, 4)
        loss = tape.operation(
            (log_probabilities,),
            elements=1,
            width=4,
            backward=backward,
            saved=(log_probabilities, labels, total_weight),
        )
        return scope.returns(loss)


def _fused_cross_entropy(r: StepContext, logits: Value) -> Value:
    """A kernel that keeps the logits and one number a row, and writes the gradient over the logits.

    Source: `Fast_CrossEntropyLoss`, unsloth/kernels/cross_entropy_loss.py, also in fms-acceleration.
    """
    tape = r.tape
    rows = logits.elements // r.structure.shape.vocab_size

    def backward(_: Storage) -> Gradients:
        return (share(logits.storage),)

    statistics = tape.value(rows * 2, 4)
    loss = tape.operation((logits,), elements=1, width=4, backward=backward, saved=(logits, statistics))
    tape.drop(statistics)
    return loss


def _linear_fused(r: StepContext, hidden: Value) -> Value:
    """Head and loss in one function that computes its gradients forward, chunk by chunk, and holds no more logits.

    Source: `fused_linear_cross_entropy_forward`, liger_kernel/ops/fused_linear_cross_entropy.py (arXiv:2410.10989).
    """
    tape, shape, precision = r.tape, r.structure.shape, r.workload.precision
    width = precision.autocast or precision.head
    rows = hidden.elements // shape.hidden_size
    chunks = -(-shape.vocab_size // shape.hidden_size)
    chunk = 1 << max(0, (-(-rows // chunks) - 1).bit_length())
    weight = r.weight(shape.vocab_size * shape.hidden_size, precision.head)
    with tape.scope() as scope:
        hidden = cast(tape, hidden, width)
        of_hidden = tape.value(hidden.elements, width)
        of_weight = tape.value(weight.elements if weight.trainable else 0, weight.width, group=Group.GRADIENTS)
        product = weight.elements * weight.width if weight.trainable else 0
        tape.use(min(chunk, rows) * shape.vocab_size * width, product)

        def backward(_: Storage) -> Gradients:
            return (share(of_hidden.storage), share(of_weight.storage) if weight.trainable else None)

        loss = tape.operation((hidden, weight), elements=1, width=4, backward=backward, saved=(of_hidden, of_weight))
        return scope.returns(loss)


def _trained_positions(r: StepContext, hidden: Value) -> Value:
    """Loratory's loss: the positions that are trained are picked out and go through the head chunk by chunk.

    Over a frozen head the gradient is made while the logits are there; over a trained one each chunk is checkpointed.

    Source: engine/training/ops/loss.py.
    """
    tape, shape, workload = r.tape, r.structure.shape, r.workload
    positions = trained_positions(workload)
    with tape.scope() as scope:
        size = hidden.elements * hidden.width
        chosen = tape.operation(
            (hidden,),
            elements=positions * shape.hidden_size,
            width=hidden.width,
            backward=lambda _: (tape.allocate(size),),
        )
        if r.head_is_trained:
            return scope.returns(_checkpointed_chunks(r, chosen, positions))
        return scope.returns(_frozen_head(r, chosen, positions))


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


def _chunks(r: StepContext, positions: int) -> list[int]:
    loss = r.workload.loss
    return chunk_sizes(loss.chunks_of or positions, r.structure.shape.vocab_size, loss.chunk_bytes)


def _frozen_head(r: StepContext, chosen: Value, positions: int) -> Value:
    """Variables of one chunk are reassigned only once the next one's are there."""
    tape, shape, precision = r.tape, r.structure.shape, r.workload.precision
    sizes = _chunks(r, positions)
    head_width = precision.head
    with tape.scope() as scope:
        tape.value(1, 4)  # the sum
        gradient = tape.value(chosen.elements, chosen.width)
        output = slope = None
        for rows in sizes[:2]:  # later ones find the same
            new_output = tape.value(rows * shape.vocab_size, head_width)
            output = new_output if output is None else assign(tape, output, new_output)
            wide = tape.alias(output) if head_width == 4 else tape.value(output.elements, 4)
            if shape.final_logit_softcapping is not None:
                wide = assign(tape, wide, _capped_without_gradient(r, wide))
            tape.use_scratch(wide.elements * 4)  # logsumexp
            normalizer = tape.value(rows, 4)
            if shape.final_logit_softcapping is not None:
                difference = tape.value(wide.elements, 4)
                new_slope = tape.value(wide.elements, 4)
                tape.drop(difference)
                tape.use(wide.elements * 4, wide.elements * 4)
                tape.drop(wide)
            else:
                new_slope = wide
            slope = new_slope if slope is None else assign(tape, slope, new_slope)
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

        return scope.returns(tape.operation((chosen,), elements=1, width=4, backward=backward, saved=(gradient,)))


def _capped_without_gradient(r: StepContext, logits: Value) -> Value:
    """`tanh(logits / cap) * cap` where nothing is recorded."""
    tape = r.tape
    divided = tape.value(logits.elements, 4)
    bounded = tape.value(logits.elements, 4)
    tape.drop(divided)
    result = tape.value(logits.elements, 4)
    tape.drop(bounded)
    return result


def _checkpointed_chunks(r: StepContext, chosen: Value, positions: int) -> Value:
    """Each chunk through head and loss, kept as nothing but its input, and run again in the backward pass."""
    tape, shape, precision = r.tape, r.structure.shape, r.workload.precision
    weight = r.weight(shape.vocab_size * shape.hidden_size, precision.head)
    weight.trainable = True
    with tape.scope() as scope:
        total = tape.value(1, 4)
        for rows in _chunks(r, positions):
            piece = narrow(tape, chosen, rows * shape.hidden_size)

            def forward(piece: Value = piece, rows: int = rows) -> Value:
                with tape.scope() as inner:
                    logits = autocast_linear(r, piece, weight, shape.vocab_size)
                    wide = assign(tape, logits, cast(tape, logits, 4))
                    labels = r.small(rows, 8)
                    return inner.returns(_cross_entropy(r, wide, labels))

            loss = tape.checkpointed(forward, piece, reentrant=False)
            total = assign(tape, total, add(tape, total, loss))
        return scope.returns(total)
