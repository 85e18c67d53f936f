"""What each operation allocates, keeps for its derivative, and allocates again in the backward pass.

Source of every function: tools/autograd/derivatives.yaml and the kernels of PyTorch 2.9 to 2.13, observed with the
tests under tests/memory. `tape` holds the bytes; widths are bytes per element.
"""

from collections.abc import Sequence

from engine.memory.autograd.tape import Tape
from engine.memory.autograd.tensors import Gradients, Parameter, Storage, Value, needs_gradient


def cast(tape: Tape, x: Value, width: int) -> Value:
    """`x.to(dtype)`: the same tensor where the width is right already, else a copy."""
    if x.width == width:
        return tape.alias(x)
    elements, back = x.elements, x.width

    def backward(_: Storage) -> Gradients:
        return (tape.allocate(elements * back),)

    return tape.operation((x,), elements=elements, width=width, backward=backward)


def clone(tape: Tape, x: Value) -> Value:
    """A copy, such as `contiguous()` makes of a transposed tensor; its gradient passes through."""
    return tape.operation((x,), elements=x.elements, width=x.width, backward=lambda gradient: (share(gradient),))


def assign(tape: Tape, old: Value, new: Value) -> Value:
    """`variable = new`: what the variable held before is released."""
    tape.drop(old)
    return new


def share(storage: Storage) -> Storage:
    """One more reference to the same bytes."""
    storage.references += 1
    return storage


def add(tape: Tape, x: Value, y: Value) -> Value:
    """`x + y`: keeps nothing; both inputs get the arriving gradient, cast where they are narrower."""
    needs = (needs_gradient(x), needs_gradient(y))

    def backward(gradient: Storage) -> Gradients:
        return [share(gradient) if needed else None for needed in needs]

    return tape.operation(
        (x, y),
        elements=x.elements,
        width=max(x.width, y.width),
        backward=backward,
        gradient_sizes=(x.elements * x.width, y.elements * y.width),
    )


def add_number(tape: Tape, x: Value) -> Value:
    """`x + number`: the gradient passes through."""
    return tape.operation((x,), elements=x.elements, width=x.width, backward=lambda gradient: (share(gradient),))


def multiply(tape: Tape, x: Value, y: Value | Parameter) -> Value:
    """`x * y`: keeps each factor that the other one's gradient needs; y may be broadcast over x.

    A broadcast factor's gradient is computed at full size before it is summed.
    """
    x_needs, y_needs = needs_gradient(x), needs_gradient(y)
    saved: list[Value | Parameter] = []
    if x_needs:
        saved.append(y)
    if y_needs:
        saved.append(x)
    width = max(x.width, y.width)
    size = x.elements * width

    def backward(_: Storage) -> Gradients:
        of_x = tape.allocate(size) if x_needs else None
        of_y = tape.allocate(size) if y_needs else None
        return (of_x, of_y)

    return tape.operation(
        (x, y),
        elements=x.elements,
        width=width,
        backward=backward,
        saved=saved,
        gradient_sizes=(x.elements * x.width, y.elements * y.width),
    )


def scale(tape: Tape, x: Value, *, width: int | None = None) -> Value:
    """`x * number` or another pointwise function whose derivative needs only numbers."""
    elements, back = x.elements, x.width

    def backward(_: Storage) -> Gradients:
        return (tape.allocate(elements * back),)

    return tape.operation((x,), elements=elements, width=width or x.width, backward=backward)


def pointwise(tape: Tape, x: Value, *, saves_result: bool = False, scratch: int = 0) -> Value:
    """A pointwise function with one gradient tensor, such as silu and gelu (keep x) or tanh (keeps its result).

    Args:
        scratch: Tensors of x's size that its backward formula holds in addition to the gradient.
    """
    elements, width = x.elements, x.width

    def backward(_: Storage) -> Gradients:
        held = [tape.allocate(elements * width) for _ in range(scratch)]
        computed = tape.allocate(elements * width)
        for storage in held:
            tape.release(storage)
        return (computed,)

    saved = () if saves_result else (x,)
    return tape.operation(
        (x,), elements=elements, width=width, backward=backward, saved=saved, saves_result=saves_result
    )


def linear(tape: Tape, x: Value, weight: Value | Parameter, out_features: int, bias: Parameter | None = None) -> Value:
    """`x @ W.T + b`: keeps x only where W is trained. The weight's gradient is computed before the input's."""
    rows = x.elements * out_features // weight.elements
    x_needs, weight_needs = needs_gradient(x), needs_gradient(weight)
    bias_needs = bias is not None and bias.trainable
    saved: list[Value | Parameter] = []
    if weight_needs:
        saved.append(x)
    if x_needs:
        saved.append(weight)
    width, x_size, weight_elements, has_bias = x.width, x.elements * x.width, weight.elements, bias is not None

    def backward(_: Storage) -> Gradients:
        of_weight = tape.allocate(weight_elements * width) if weight_needs else None
        of_x = tape.allocate(x_size) if x_needs else None
        of_bias = tape.allocate(out_features * width) if bias_needs else None
        return (of_x, of_weight, of_bias) if has_bias else (of_x, of_weight)

    inputs: Sequence[Value | Parameter] = (x, weight) if bias is None else (x, weight, bias)
    return tape.operation(inputs, elements=rows * out_features, width=width, backward=backward, saved=saved)


def dropout(tape: Tape, x: Value, *, on_cuda: bool) -> Value:
    """Keeps a mask: one byte an element on CUDA (`native_dropout`), a factor of x's own width on the CPU."""
    size = x.elements * x.width
    mask = tape.value(x.elements, 1 if on_cuda else x.width)

    def backward(_: Storage) -> Gradients:
        return (tape.allocate(size),)

    result = tape.operation((x,), elements=x.elements, width=x.width, backward=backward, saved=(mask,))
    tape.drop(mask)
    return result


def narrow(tape: Tape, x: Value, elements: int) -> Value:
    """A slice: a view whose gradient is a tensor of x's full size, zero outside."""
    size = x.elements * x.width
    result = tape.alias(x, elements=elements)
    if needs_gradient(x) and tape.records_gradients:
        result.producer = tape.node((x,), lambda _: (tape.allocate(size),))
    return result


def split_heads(tape: Tape, x: Value, *, copies_gradient: bool) -> Value:
    """`view(batch, length, heads, -1).transpose(1, 2)`: a view; a gradient laid out by heads is copied back into rows."""
    result = tape.alias(x)
    if copies_gradient and needs_gradient(x) and tape.records_gradients:
        size = x.elements * x.width
        result.producer = tape.node((x,), lambda _: (tape.allocate(size),))
    return result


def concatenate(tape: Tape, *parts: Value, saved: Sequence[Value] = ()) -> Value:
    """`torch.cat`: a new tensor; the gradients of its parts are views of the one that arrives."""

    def backward(gradient: Storage) -> Gradients:
        return [share(gradient) if needed else None for needed in needs]

    needs = [needs_gradient(part) for part in parts]
    elements = sum(p.elements for p in parts)
    return tape.operation(parts, elements=elements, width=parts[0].width, backward=backward, saved=saved)
