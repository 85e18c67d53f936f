"""How a result is measured on rows that it was not trained on."""

from engine.config.section import Section, setting


class EvaluationConfig(Section):
    """Settings of one evaluation."""

    max_rows: int | None = setting(
        None,
        label="Rows for the loss",
        help="On how many held-out rows the loss is measured, spread evenly. Empty takes all.",
        ge=1,
        le=10_000_000,
    )
    answered_rows: int = setting(
        20,
        label="Rows to answer",
        help="On how many held-out rows base and tuned write an answer that is compared with the reference. 0 skips it.",
        ge=0,
        le=10_000,
    )
    max_new_tokens: int = setting(
        128,
        label="Longest answer, in tokens",
        help="Where a written answer ends if the model does not end it before.",
        ge=1,
        le=65_536,
    )
