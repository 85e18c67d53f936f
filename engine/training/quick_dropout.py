"""Dropout masks that are quick to draw on a CPU, where PyTorch draws one random number at a time.

A mask is drawn from a seed that comes from PyTorch's own generator. What is saved of that generator therefore covers the
masks as well: a resumed run and a recomputed forward pass (gradient checkpointing) draw the same ones.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch

_LEVELS = 1 << 16  # a probability is held in 16 random bits


@dataclass(frozen=True)
class DropoutMask:
    """Which elements of a tensor stay. On CPUs only the seed is kept, and the mask drawn again when it is needed.

    `keep` is the exact share that stays, which inverted dropout divides by (Srivastava et al. 2014, section 10).
    """

    keep: float
    seed: int | None
    drawn: torch.Tensor | None

    @classmethod
    def draw(cls, x: torch.Tensor, p: float) -> Self:
        """Draw a mask for a tensor of this shape and device, of which the share `p` is dropped."""
        dropped = round(p * _LEVELS)
        keep = 1.0 - dropped / _LEVELS
        if x.device.type == "cpu":
            return cls(keep, int(torch.randint(1 << 62, ())), None)
        return cls(keep, None, torch.empty_like(x, dtype=torch.bool).bernoulli_(keep))

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        """`x` with zeros where the mask drops; not yet divided by `keep`."""
        if self.drawn is not None:
            return x * self.drawn
        assert self.seed is not None
        words = -(-x.numel() // 4)  # of 64 bits, each good for four elements
        bits = torch.from_numpy(np.random.SFC64(self.seed).random_raw(words).view(np.int16))[: x.numel()]
        threshold = round((1.0 - self.keep) * _LEVELS) - _LEVELS // 2
        # All bits set where the element stays: a bitwise AND is the cheapest multiplication by 0 or 1.
        stays = bits.ge_(threshold).neg_().view(x.shape)
        if x.element_size() == 2:
            return torch.bitwise_and(x.view(torch.int16), stays).view(x.dtype)
        whole = {4: torch.int32, 8: torch.int64}[x.element_size()]
        return torch.bitwise_and(x.view(whole), stays.to(whole)).view(x.dtype)
