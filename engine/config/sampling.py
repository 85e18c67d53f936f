"""How an answer is drawn from the model's probabilities; names are those of transformers' `generate`."""

from engine.config.section import Section, setting


class SamplingConfig(Section):
    """Settings of one generation; temperature 0 is greedy and then nothing is random."""

    temperature: float = setting(
        0.3,
        label="Temperature",
        help="0 always takes the most likely token. 1 samples from the model's own distribution.",
        ge=0.0,
        le=5.0,
    )
    top_p: float = setting(
        0.9,
        label="Top-p",
        help="Samples from the smallest set of tokens with this total probability. 1 turns it off.",
        gt=0.0,
        le=1.0,
    )
    top_k: int = setting(
        0,
        label="Top-k",
        help="Samples from this many most likely tokens. 0 turns it off.",
        ge=0,
        le=1_000_000,
    )
    repetition_penalty: float = setting(
        1.0,
        label="Repetition penalty",
        help="Above 1, tokens that occurred already are less likely. 1 turns it off; 1.1 is usual.",
        ge=0.1,
        le=10.0,
    )
    max_new_tokens: int = setting(
        512,
        label="Max new tokens",
        help="Token limit of an answer.",
        ge=1,
        le=1_048_576,
    )
    seed: int | None = setting(
        None,
        label="Seed",
        help="The same seed gives the same answer on the same device. Empty is random.",
        ge=0,
        le=2**32 - 1,
    )

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is always taken."""
        return self.temperature == 0
