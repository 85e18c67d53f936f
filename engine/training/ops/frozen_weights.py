"""Frozen weights as matrices, and products with them: dense ones, and 4-bit ones of bitsandbytes that are written out first."""

import functools

import torch

from engine.config.optimizations import is_wanted

# Up to so many rows bitsandbytes multiplies on a GPU without writing the weight out: `gemm_4bit`, backends/cuda/ops.py.
_FEW_ROWS = 1536


class FrozenWeights:
    """Frozen weights as matrices; those of 4 bits are written out, on CUDA within a step into one buffer for each device."""

    def __init__(self) -> None:
        self._reuses = is_wanted("weight_buffer")
        self.in_step = False  # else a weight is written out for itself, and its memory is free afterwards
        self._buffers: dict[tuple[torch.device, torch.dtype], torch.Tensor] = {}  # flat, as large as the largest so far

    def of(self, base: torch.nn.Linear, dtype: torch.dtype) -> torch.Tensor:
        """Return the weight, (out_features, in_features), in `dtype`; valid until the next call."""
        state = getattr(base.weight, "quant_state", None)
        if state is None:
            return base.weight.detach()
        from bitsandbytes.functional import dequantize_4bit

        packed = base.weight.data.view(-1, 1)
        if state.dtype != dtype or not self._writes_into(packed.device):
            return dequantize_4bit(packed, state).to(dtype)
        # Its readers are queued before its next writer, on the one stream that passes run on.
        buffer = self._buffer(packed.device, dtype, base.in_features * base.out_features)
        return dequantize_4bit(packed, state, out=buffer.view(state.shape))

    def product(self, x: torch.Tensor, base: torch.nn.Linear) -> torch.Tensor:
        """Return `x @ W.T + bias`, (…, out_features), a tensor of its own that may be added to."""
        state, bias = getattr(base.weight, "quant_state", None), base.bias
        if bias is not None:
            bias = bias.detach().to(x.dtype)
        if state is not None and x.is_cuda and x.numel() <= _FEW_ROWS * base.in_features:
            from bitsandbytes import matmul_4bit

            output = matmul_4bit(x, base.weight.data, quant_state=state, bias=bias)
            return output.clone() if output._is_view() else output
        output = x.new_empty(*x.shape[:-1], base.out_features)
        flat, rows, weight = output.view(-1, base.out_features), rows_of(x), self.of(base, x.dtype).t()
        if bias is None:
            torch.mm(rows, weight, out=flat)
        else:
            torch.addmm(bias, rows, weight, out=flat)
        return output

    def _writes_into(self, device: torch.device) -> bool:
        """Whether bitsandbytes takes a buffer there: `dequantize_4bit.out` has a kernel on CUDA alone."""
        return self._reuses and self.in_step and device.type == "cuda"

    def _buffer(self, device: torch.device, dtype: torch.dtype, elements: int) -> torch.Tensor:
        known = self._buffers.get((device, dtype))
        if known is None or known.numel() < elements:
            known = self._buffers[device, dtype] = torch.empty(elements, device=device, dtype=dtype)
        return known[:elements]


def rows_of(x: torch.Tensor) -> torch.Tensor:
    """Return a tensor as a matrix: all its leading dimensions are one."""
    return x.reshape(-1, x.shape[-1])


def wide_product(left: torch.Tensor, right: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return `left @ right` in `dtype`, which a GPU's product may answer in at once."""
    if left.dtype == dtype:
        return left @ right
    if left.is_cuda and dtype is torch.float32 and _answers_in_float32(left.device, left.dtype):
        return torch.mm(left, right, out_dtype=dtype)
    return (left @ right).to(dtype)


@functools.cache
def _answers_in_float32(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether products of 16-bit matrices come in float32 there; PyTorch has it since 2.8, not on every device."""
    ones = torch.ones(16, 16, dtype=dtype, device=device)
    try:
        product = torch.mm(ones, ones, out_dtype=torch.float32)
    except (RuntimeError, TypeError, NotImplementedError):
        return False
    return product.dtype is torch.float32
