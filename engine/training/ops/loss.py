"""The loss over trained tokens alone, without ever holding the logits of a whole sequence.

A language model's head is its widest layer. Only positions whose next token is trained on go through it, a chunk at a
time, and each chunk's gradient is made while its logits are there (as in Liger, Hsu et al. 2024, section 3.2,
arXiv:2410.10989). On CUDA a Triton kernel makes it (`triton_loss`); the operations here are its reference, and what is used
elsewhere.
"""

import functools
import types
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from loratory.engine.config.rules import LOSS_CHUNK_BYTES, LOSS_CHUNK_BYTES_CPU

# float16 holds nothing below 6e-8 and nothing above 65,504. The gradient at a position's logits is scaled until its absolute
# values add up to this, so its product with weights of up to 100 is held with all its digits.
_FLOAT16_SUM = 512.0

_ORIGINAL_FORWARD = "_loratory_original_forward"


class TrainedTokens(NamedTuple):
    """What a pass is trained on: at flat position `positions[i]` of (batch × length), the next token is `targets[i]`."""

    positions: torch.Tensor  # (n,), int64
    targets: torch.Tensor  # (n,), int64


@dataclass(frozen=True)
class LogitTransform:
    """What becomes of the head's output: logits = cap · tanh(scale · output / cap) in some families, then losses.

    `fused` lets the Triton kernel do all of it; it also takes the backward pass, in place.
    """

    scale: float = 1.0
    cap: float | None = None
    fused: bool = False
    temperature: float = 1.0  # of sampling, by which the rest is divided; 1 where fused and capped

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Transform float32 logits, in place where autograd allows."""
        if self.scale != 1.0:
            logits = logits * self.scale
        return logits if self.cap is None else torch.tanh(logits / self.cap) * (self.cap / self.temperature)

    def apply_derivative_(self, gradient: torch.Tensor, logits: torch.Tensor) -> None:
        """Turn the gradient at the transformed logits into that at the head's output, in place."""
        if self.cap is not None:
            gradient.mul_((1.0 - (logits * self.temperature / self.cap) ** 2) / self.temperature)
        if self.scale != 1.0:
            gradient.mul_(self.scale)


def logit_transform(text_config: Any) -> LogitTransform:
    """Read the transform of the head's output from a model's configuration.

    Granite and MiniCPM divide by `logits_scaling`, HyperCLOVA X multiplies by it, Cohere and some more have `logit_scale`,
    Falcon-H1 `lm_head_multiplier`, Gemma `final_logit_softcapping`.
    """
    names = ("logit_scale", "output_multiplier", "lm_head_multiplier")
    factors = [float(value) for name in names if (value := getattr(text_config, name, None)) is not None]
    scale, scaling = 1.0, getattr(text_config, "logits_scaling", None)
    if factors:
        scale = factors[0]
    elif scaling is not None:
        scale = float(scaling) if text_config.model_type == "hyperclovax" else 1.0 / float(scaling)
    return LogitTransform(scale, getattr(text_config, "final_logit_softcapping", None))


def causal_lm_of(model: Any) -> Any:
    """Return the causal language model below a PEFT wrapper, or the model itself where there is none."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def attach_loss(
    causal_lm: Any,
    *,
    through_logits: bool = False,
    virtual_inputs: int = 0,
    fused: bool = False,
    temperature: float = 1.0,
    seeing: Sequence[torch.nn.Parameter] = (),
) -> None:
    """Let `model(..., trained_tokens=…)` return the summed loss of those tokens in place of logits.

    With `token_losses=True` it returns the loss of each, (n,), for objectives that do not add them all.

    Args:
        causal_lm: A causal language model of transformers, below any PEFT wrapper. Without `trained_tokens` its forward
            pass is unchanged.
        through_logits: Compute all logits as the model does, for families that change them in ways unknown here.
        virtual_inputs: Embeddings that PEFT puts before every row, which the positions of trained tokens do not count.
        fused: Let the Triton kernel make losses and gradients (`loratory.engine.training.kernels.use_fused_loss`).
        temperature: Divides the logits, as where tokens were sampled.
        seeing: Trained weights that get a gradient of zero from passes without images: other processes wait for it, and a
            step is the same however its rows are divided.
    """
    original = getattr(causal_lm, _ORIGINAL_FORWARD, causal_lm.forward)
    setattr(causal_lm, _ORIGINAL_FORWARD, original)
    transform = logit_transform(causal_lm.config.get_text_config())
    if transform.cap is None:
        transform = replace(transform, scale=transform.scale / temperature, fused=fused)
    else:  # the kernel divides before the cap alone
        transform = replace(transform, temperature=temperature, fused=fused and temperature == 1.0)

    @functools.wraps(type(causal_lm).forward)  # PEFT and generation read the signature
    def forward(
        self: Any, *args: Any, trained_tokens: TrainedTokens | None = None, token_losses: bool = False, **kwargs: Any
    ) -> Any:
        if trained_tokens is None:
            return original(*args, **kwargs)
        arguments = {name: value for name, value in kwargs.items() if value is not None}
        if through_logits:
            states = original(*args, **arguments).logits
        else:
            states = self.base_model(*args, **arguments, use_cache=False).last_hidden_state
        positions, targets = (each.to(states.device) for each in trained_tokens)  # layers may be spread
        if "inputs_embeds" in arguments:  # of (batch, virtual inputs + length, …)
            positions = positions + (positions // (states.shape[1] - virtual_inputs) + 1) * virtual_inputs
        chosen = states.reshape(-1, states.shape[-1])[positions]
        if seeing and "pixel_values" not in arguments:
            chosen = chosen + 0.0 * sum(weight.sum() for weight in seeing).to(chosen.dtype)
        if through_logits:
            losses = functional.cross_entropy(chosen.float() / temperature, targets, reduction="none")
        else:
            losses = loss_of_each(chosen, targets, self.get_output_embeddings(), transform)
        return losses if token_losses else losses.sum()

    causal_lm.forward = types.MethodType(forward, causal_lm)


def loss_of_each(
    hidden: torch.Tensor, targets: torch.Tensor, head: torch.nn.Module, transform: LogitTransform = LogitTransform()
) -> torch.Tensor:
    """Return -log p(target) for each position of `hidden`, (n,), in nats, float32.

    Args:
        hidden: Last hidden states, (n, hidden_size); `targets` are token ids, (n,).
        head: The output layer; a frozen linear one takes the quick path, any other is computed again for its gradient.
    """
    if _is_frozen_linear(head):
        with torch.autocast(hidden.device.type, enabled=False):  # it would take the float32 sums for products
            return _FrozenHeadLoss.apply(hidden, head.weight, head.bias, targets, transform)
    width = getattr(head, "out_features", None) or head.weight.shape[0]
    pieces = []
    for start, end in _chunks(hidden, width):
        piece = (hidden[start:end], targets[start:end], head, transform)
        is_trained = torch.is_grad_enabled()
        pieces.append(checkpoint(_chunk_loss, *piece, use_reentrant=False) if is_trained else _chunk_loss(*piece))
    return torch.cat(pieces)


def _is_frozen_linear(head: torch.nn.Module) -> bool:
    return type(head) is torch.nn.Linear and not any(p.requires_grad for p in head.parameters())


def _chunk_loss(
    hidden: torch.Tensor, targets: torch.Tensor, head: torch.nn.Module, transform: LogitTransform
) -> torch.Tensor:
    if transform.fused:
        from loratory.engine.training.ops.triton_loss import CrossEntropy

        return CrossEntropy.apply(head(hidden), targets, transform.scale, transform.cap)
    return functional.cross_entropy(transform.apply(head(hidden).float()), targets, reduction="none")


def _chunks(hidden: torch.Tensor, vocabulary: int, logit_bytes: int = 4) -> list[tuple[int, int]]:
    chunk_bytes = LOSS_CHUNK_BYTES_CPU if hidden.device.type == "cpu" else LOSS_CHUNK_BYTES
    count = max(1, -(-hidden.shape[0] * vocabulary * logit_bytes // chunk_bytes))
    size = max(1, -(-hidden.shape[0] // count))  # even chunks: a small last one would waste a product
    return [(start, min(start + size, hidden.shape[0])) for start in range(0, hidden.shape[0], size)]


class _FrozenHeadLoss(torch.autograd.Function):  # type: ignore[misc]
    """Loss and gradient at the hidden states in one pass over the head; nothing of the logits is kept."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,  # (vocabulary, hidden_size)
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        transform: LogitTransform,
    ) -> torch.Tensor:
        losses = torch.empty(hidden.shape[:1], dtype=torch.float32, device=hidden.device)
        wants_gradient = ctx.needs_input_grad[0]
        gradient = torch.empty_like(hidden) if wants_gradient else None
        # In float16 the loss scale comes with the backward pass, when a gradient that is too small would be gone.
        needs_scales = wants_gradient and torch.float16 in (hidden.dtype, weight.dtype)
        scales = hidden.new_ones((hidden.shape[0], 1), dtype=torch.float32) if needs_scales else None
        # The kernel never holds logits at 32 bits.
        for start, end in _chunks(hidden, weight.shape[0], weight.element_size() if transform.fused else 4):
            part = slice(start, end)
            output = functional.linear(hidden[part].to(weight.dtype), weight, bias)
            if transform.fused:
                from loratory.engine.training.ops import triton_loss

                chunk = (output, targets[part], transform.scale, transform.cap)
                if gradient is None:
                    losses[part], _ = triton_loss.losses_of(*chunk)
                else:
                    gradient_sum = None if scales is None else _FLOAT16_SUM
                    losses[part], factors = triton_loss.losses_and_gradient_(*chunk, gradient_sum)
                    gradient[part] = output @ weight
                    if scales is not None:
                        scales[part] = factors.unsqueeze(1)
                del chunk, output  # before the logits of the next chunk come
                continue
            logits = transform.apply(output.float())
            target_columns = targets[part].unsqueeze(1)
            normalizer = torch.logsumexp(logits, dim=-1, keepdim=True)
            losses[part] = (normalizer - logits.gather(1, target_columns)).squeeze(1)
            if gradient is None:
                continue
            slope = torch.exp(logits - normalizer) if transform.cap is not None else logits.sub_(normalizer).exp_()
            slope.scatter_add_(1, target_columns, slope.new_full((1, 1), -1.0).expand_as(target_columns))
            transform.apply_derivative_(slope, logits)
            if scales is not None:
                scales[part] = _float16_scales(slope)
                slope.mul_(scales[part])
            gradient[part] = output.copy_(slope) @ weight
        ctx.save_for_backward(gradient, scales)
        return losses

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        gradient, scales = ctx.saved_tensors
        if gradient is None:
            return None, None, None, None, None
        # In float32: 1 / tokens, rounded to the gradient's dtype, would scale every step a little wrong.
        factor = grad.unsqueeze(1) if scales is None else grad.unsqueeze(1) / scales
        return (gradient.float() * factor).to(gradient.dtype), None, None, None, None


def _float16_scales(slope: torch.Tensor) -> torch.Tensor:
    """Return a power of two for each position that brings its gradient into the middle of float16's range, (n, 1)."""
    sums = torch.linalg.vector_norm(slope, ord=1, dim=-1, keepdim=True).clamp_min(1e-30)
    return torch.exp2(torch.log2(_FLOAT16_SUM / sums).floor())
