"""What each operation allocates, keeps for its derivative, and allocates again in the backward pass.

Source of every method: tools/autograd/derivatives.yaml and the kernels of PyTorch 2.9 to 2.13, observed with the
tests under tests/memory. Widths are bytes per element.
"""

from collections.abc import Sequence

from loratory.engine.memory.autograd.graph import Graph
from loratory.engine.memory.autograd.tensors import (
    Backward,
    Gradients,
    Parameter,
    Storage,
    Value,
    needs_gradient,
    share,
)


class Tape(Graph):
    """Autograd with the operations that decoders are made of."""

    def cast(self, x: Value, width: int) -> Value:
        """`x.to(dtype)`: the same tensor where the width is right already, else a copy."""
        return self.alias(x) if x.width == width else self.scale(x, width=width)

    def clone(self, x: Value) -> Value:
        """Copy, as `contiguous()` does a transposed tensor, or `x + number`; the gradient passes through."""
        return self.operation((x,), x.elements, x.width, backward=lambda gradient: (share(gradient),))

    def assign(self, old: Value, new: Value) -> Value:
        """`variable = new`: what the variable held before is released."""
        self.drop(old)
        return new

    def add(self, x: Value, y: Value) -> Value:
        """`x + y`: keeps nothing; both inputs get the arriving gradient, cast where they are narrower."""
        width = max(x.width, y.width)
        backward = self._pass_on(x, y)
        return self.operation((x, y), x.elements, width, backward=backward, gradient_sizes=(x.size, y.size))

    def multiply(self, x: Value, y: Value | Parameter, elements: int | None = None) -> Value:
        """`x * y`: keeps each factor that the other one's gradient needs; y may be broadcast over x, or both to `elements`.

        A broadcast factor's gradient is computed at full size before it is summed.
        """
        needs = (needs_gradient(x), needs_gradient(y))
        elements, width = elements or x.elements, max(x.width, y.width)
        size = elements * width
        return self.operation(
            (x, y),
            elements,
            width,
            backward=lambda _: [self.allocate(size) if needed else None for needed in needs],
            saved=[factor for factor, needed in zip((y, x), needs, strict=True) if needed],
            gradient_sizes=(x.size, y.size),
        )

    def scale(self, x: Value, *, width: int | None = None) -> Value:
        """`x * number` or another pointwise function whose derivative needs only numbers."""
        return self.operation((x,), x.elements, width or x.width)

    def pointwise(self, x: Value, *, saves_result: bool = False, scratch: int = 0) -> Value:
        """Apply a pointwise function with one gradient tensor, such as silu and gelu (keep x) or tanh (keeps its result).

        Args:
            scratch: Tensors of x's size that its backward formula holds in addition to the gradient.
        """
        saved = () if saves_result else (x,)
        scratches = (x.size,) * scratch
        return self.operation((x,), x.elements, x.width, scratch=scratches, saved=saved, saves_result=saves_result)

    def soft_cap(self, x: Value) -> Value:
        """`tanh(x / cap) * cap`, where no variable holds x itself any more."""
        x = self.assign(x, self.scale(x))
        x = self.assign(x, self.pointwise(x, saves_result=True))
        return self.assign(x, self.scale(x))

    def linear(self, x: Value, weight: Value | Parameter, out_features: int, bias: Parameter | None = None) -> Value:
        """`x @ W.T + b`: keeps x only where W is trained. The weight's gradient is computed before the input's."""
        width, x_size, weight_elements = x.width, x.size, weight.elements
        x_needs, weight_needs = needs_gradient(x), needs_gradient(weight)
        saved: list[Value | Parameter] = [*([x] if weight_needs else []), *([weight] if x_needs else [])]

        def backward(_: Storage) -> Gradients:
            grad_weight = self.allocate(weight_elements * width) if weight_needs else None
            grad_x = self.allocate(x_size) if x_needs else None
            if bias is None:
                return (grad_x, grad_weight)
            return (grad_x, grad_weight, self.allocate(out_features * width) if bias.trainable else None)

        inputs: Sequence[Value | Parameter] = (x, weight) if bias is None else (x, weight, bias)
        elements = x.elements * out_features // weight.elements * out_features
        return self.operation(inputs, elements, width, backward=backward, saved=saved)

    def dropout(self, x: Value, *, on_cuda: bool) -> Value:
        """Drop out, keeping a mask: one byte an element on CUDA (`native_dropout`), a factor of x's own width on the CPU."""
        mask = self.value(x.elements, 1 if on_cuda else x.width)
        result = self.operation((x,), x.elements, x.width, saved=(mask,))
        self.drop(mask)
        return result

    def concatenate(self, *parts: Value, saved: Sequence[Value] = ()) -> Value:
        """`torch.cat`: a new tensor; the gradients of its parts are views of the one that arrives."""
        elements = sum(part.elements for part in parts)
        return self.operation(parts, elements, parts[0].width, backward=self._pass_on(*parts), saved=saved)

    def _pass_on(self, *inputs: Value) -> Backward:
        needs = [needs_gradient(item) for item in inputs]
        return lambda gradient: [share(gradient) if needed else None for needed in needs]
