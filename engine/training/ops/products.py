"""What LoRA's function multiplies with: frozen weights, dense or of 4 bits, which are written out first, and dropout masks."""

import functools
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch

# Up to so many rows bitsandbytes multiplies on a GPU without writing the weight out: `gemm_4bit`, backends/cuda/ops.py.
_FEW_ROWS = 1536
_LEVELS = 1 << 16  # a probability is held in 16 random bits


def dense_weight(base: torch.nn.Linear, dtype: torch.dtype) -> torch.Tensor:
    """Return a frozen weight, (out_features, in_features), in `dtype`; one of 4 bits is written out."""
    state = getattr(base.weight, "quant_state", None)
    if state is None:
        return base.weight.detach()
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(base.weight.data.view(-1, 1), state).to(dtype)


def frozen_product(x: torch.Tensor, base: torch.nn.Linear) -> torch.Tensor:
    """Return `x @ W.T + bias`, (…, out_features), a tensor of its own that may be added to."""
    state, bias = getattr(base.weight, "quant_state", None), base.bias
    if bias is not None:
        bias = bias.detach().to(x.dtype)
    if state is not None and x.is_cuda and x.numel() <= _FEW_ROWS * base.in_features:
        from bitsandbytes import matmul_4bit

        output = matmul_4bit(x, base.weight.data, quant_state=state, bias=bias)
        return output.clone() if output._is_view() else output
    output = x.new_empty(*x.shape[:-1], base.out_features)
    flat, rows, weight = output.view(-1, base.out_features), rows_of(x), dense_weight(base, x.dtype).t()
    if bias is None:
        torch.mm(rows, weight, out=flat)
    else:
        torch.addmm(bias, rows, weight, out=flat)
    return output


def as_writable(product: torch.Tensor, base: torch.nn.Module) -> torch.Tensor:
    """Return the output of a frozen layer as a tensor that may be added to.

    bitsandbytes' own functions may return a view, with a bias or from int8 on GPUs, and autograd forbids writing into a
    view that a function like theirs has made.
    """
    if product._is_view() and type(base) is not torch.nn.Linear:
        product = product.clone()
    return product.contiguous()


def product_dtype(base: Any) -> torch.dtype | None:
    """Return the dtype of a frozen layer's product; None where the format of its weight is unknown."""
    state = getattr(base.weight, "quant_state", None)
    if state is None:
        return base.weight.dtype if type(base) is torch.nn.Linear and base.weight.is_floating_point() else None
    fits = tuple(state.shape) == (base.out_features, base.in_features)
    is_repacked = getattr(state, "packing_format_for_cpu", False)
    dtype: torch.dtype | None = getattr(base, "compute_dtype", None)
    return dtype if fits and not is_repacked and base.compute_type_is_set else None


@dataclass(frozen=True)
class DropoutMask:
    """Which elements of a tensor stay. On CPUs only the seed is kept, and the mask drawn again when it is needed.

    PyTorch draws one number at a time there, so a mask is drawn by NumPy from a seed of PyTorch's own generator: a resumed
    run and a recomputed forward pass draw the same ones.

    `keep` is the exact share that stays, which inverted dropout divides by (Srivastava et al. 2014, section 10).
    """

    keep: float
    seed: int | None
    tensor: torch.Tensor | None

    @classmethod
    def draw(cls, x: torch.Tensor, p: float) -> Self:
        """Draw a mask for a tensor of this shape and device, of which the share `p` is dropped."""
        drop_count = round(p * _LEVELS)
        keep = 1.0 - drop_count / _LEVELS
        if x.device.type == "cpu":
            return cls(keep, int(torch.randint(1 << 62, ())), None)
        return cls(keep, None, torch.empty_like(x, dtype=torch.bool).bernoulli_(keep))

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        """Return `x` with zeros where the mask drops; not yet divided by `keep`."""
        if self.tensor is not None:
            return x * self.tensor
        assert self.seed is not None
        word_count = -(-x.numel() // 4)  # of 64 bits, each good for four elements
        bits = torch.from_numpy(np.random.SFC64(self.seed).random_raw(word_count).view(np.int16))[: x.numel()]
        threshold = round((1.0 - self.keep) * _LEVELS) - _LEVELS // 2
        # All bits set where the element stays: a bitwise AND is the cheapest multiplication by 0 or 1.
        stays = bits.ge_(threshold).neg_().view(x.shape)
        if x.element_size() == 2:
            return torch.bitwise_and(x.view(torch.int16), stays).view(x.dtype)
        whole = {4: torch.int32, 8: torch.int64}[x.element_size()]
        return torch.bitwise_and(x.view(whole), stays.to(whole)).view(x.dtype)


def rows_of(x: torch.Tensor) -> torch.Tensor:
    """Return a tensor as a matrix: all its leading dimensions are one."""
    return x.reshape(-1, x.shape[-1])


def wide_product(left: torch.Tensor, right: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return `left @ right` in `dtype`, which a GPU's product may return directly."""
    if left.dtype == dtype:
        return left @ right
    if left.is_cuda and dtype is torch.float32 and _answers_in_float32(left.device, left.dtype):
        return torch.mm(left, right, out_dtype=dtype)
    return (left @ right).to(dtype)


@functools.cache
def _answers_in_float32(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether products of 16-bit matrices can be float32 there; PyTorch has it since 2.8, not on every device."""
    ones = torch.ones(16, 16, dtype=dtype, device=device)
    try:
        product = torch.mm(ones, ones, out_dtype=torch.float32)
    except (RuntimeError, TypeError, NotImplementedError):
        return False
    return product.dtype is torch.float32
