"""How an answer is drawn from the model's probabilities; names are those of transformers' `generate`."""

from engine.config.section import Section, setting


class SamplingConfig(Section):
    """Settings of one generation; temperature 0 is greedy and then nothing is random."""

    temperature: float = setting(
        0.3,
        label="Temperature",
        help="0 always takes the most likely token (greedy). Low values keep to what was learned, 1 is the model's own "
        "spread, above 1 wanders.",
        ge=0.0,
        le=5.0,
    )
    top_p: float = setting(
        0.9,
        label="Top-p",
        help="Draws only from the smallest set of tokens whose probabilities add up to this. 1 switches it off.",
        gt=0.0,
        le=1.0,
    )
    top_k: int = setting(
        0,
        label="Top-k",
        help="Draws only from so many most likely tokens. 0 switches it off.",
        ge=0,
        le=1_000_000,
    )
    repetition_penalty: float = setting(
        1.0,
        label="Repetition penalty",
        help="Above 1 makes every token that already occurred, in the prompt too, less likely. 1 switches it off; 1.1 is "
        "usual.",
        ge=0.1,
        le=10.0,
    )
    max_new_tokens: int = setting(
        512,
        label="Longest answer, in tokens",
        help="The answer ends here if the model does not end it before.",
        ge=1,
        le=1_048_576,
    )
    seed: int | None = setting(
        None,
        label="Seed",
        help="The same seed gives the same answer on the same device. Empty draws anew each time.",
        ge=0,
        le=2**32 - 1,
    )

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is always taken."""
        return self.temperature == 0
