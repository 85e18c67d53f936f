"""Choose the next token of each row of a batch: the likeliest one, or one at random, with its log-probability."""

from dataclasses import dataclass
from typing import NamedTuple

import torch

_NUCLEUS_TOKENS = (
    1024  # the likeliest tokens, which nearly always hold the wanted share; a full sort takes ten times as long
)


class Choice(NamedTuple):
    """The next token of each row, and under the whole distribution at the temperature its log-probability and the entropy."""

    tokens: torch.Tensor  # (rows,), int64
    log_probabilities: torch.Tensor  # (rows,), float32; zeros where the likeliest token is taken
    entropies: torch.Tensor  # (rows,), in nats; zeros where the likeliest token is taken


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. A temperature of 0 takes the likeliest one."""

    temperature: float = 0.0
    top_p: float = 1.0
    generator: torch.Generator | None = None

    def choose(self, logits: torch.Tensor) -> Choice:
        """Return a choice for each row of logits, (rows, vocabulary), float32, which are overwritten."""
        if not self.temperature:
            zeros = logits.new_zeros(logits.shape[0])
            return Choice(logits.argmax(dim=-1), zeros, zeros)
        probabilities = torch.softmax(logits if self.temperature == 1.0 else logits.div_(self.temperature), dim=-1)
        tokens = self._draw(probabilities)
        index = tokens.unsqueeze(1)
        chosen = probabilities.gather(1, index).log_().squeeze(1)
        # Log-probabilities are the logits less one number for each row, which the chosen token gives.
        return Choice(
            tokens, chosen, logits.gather(1, index).squeeze(1) - chosen - torch.linalg.vecdot(probabilities, logits)
        )

    def _draw(self, probabilities: torch.Tensor) -> torch.Tensor:
        if self.top_p >= 1.0:
            return self._draw_index(probabilities)
        values, tokens = probabilities.topk(min(_NUCLEUS_TOKENS, probabilities.shape[1]), dim=-1)
        before = values.cumsum(-1) - values
        if bool((before[:, -1] + values[:, -1] < self.top_p).any()):
            values, tokens = probabilities.sort(dim=-1, descending=True)
            before = values.cumsum(-1) - values
        index = self._draw_index(values.masked_fill(before >= self.top_p, 0.0))
        return tokens.gather(1, index.unsqueeze(1)).squeeze(1)

    def _draw_index(self, weights: torch.Tensor) -> torch.Tensor:
        """Draw by inverting the cumulative distribution: one random number for each row.

        Sums at 32 bits move a token's probability by 6e-8, far less than rounding in the model does.
        """
        cumulative = weights.cumsum(-1)
        total = cumulative[:, -1:]
        share = torch.rand(total.shape, device=weights.device, generator=self.generator)
        # Rounding must not reach the total, behind which there are tokens of probability 0.
        target = torch.minimum(share * total, torch.nextafter(total, torch.zeros_like(total)))
        return torch.searchsorted(cumulative, target, right=True).squeeze(1)


LIKELIEST = Sampling()
