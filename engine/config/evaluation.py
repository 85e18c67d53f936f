"""How a result is measured on rows that it was not trained on."""

from engine.config.section import Section, setting


class EvaluationConfig(Section):
    """Settings of one evaluation."""

    max_rows: int | None = setting(
        None,
        label="Rows for loss",
        help="Held-out rows whose loss is measured, spread evenly. Empty uses all.",
        ge=1,
        le=10_000_000,
    )
    answered_rows: int = setting(
        20,
        label="Rows to answer",
        help="Held-out rows that base and tuned answer, to compare with the reference. 0 skips it.",
        ge=0,
        le=10_000,
    )
    max_new_tokens: int = setting(
        128,
        label="Max new tokens",
        help="Token limit of an answer.",
        ge=1,
        le=65_536,
    )
