"""In which form a result is taken away."""

from typing import Literal

from engine.config.section import Section, setting

ExportKind = Literal["adapter", "merged"]
ExportDtype = Literal["auto", "bfloat16", "float16", "float32"]


class ExportConfig(Section):
    """Settings of one export."""

    kind: ExportKind = setting(
        "adapter",
        label="What to take",
        help="adapter is what was trained alone, small, to be loaded on its base; merged is a complete model with the "
        "adapter worked into its weights.",
    )
    dtype: ExportDtype = setting(
        "auto",
        label="Precision of the merged weights",
        help="auto keeps that of the base model's files. float32 loses nothing and takes twice the room of 16 bits.",
    )
    max_shard_gb: float = setting(
        5.0,
        label="Largest weight file, in GB",
        help="Larger models are divided into several files.",
        advanced=True,
        gt=0,
        le=1000,
    )
    verify: bool = setting(
        True,
        label="Verify",
        help="Load what was written and compare its answers with the run's. Takes as long as a short chat.",
        advanced=True,
    )
