"""In which form a result is taken away."""

from typing import Literal

from engine.config.section import Section, setting

ExportKind = Literal["adapter", "merged", "gguf"]
ExportDtype = Literal["auto", "bfloat16", "float16", "float32"]
GgufType = Literal["auto", "f16", "bf16", "q8_0"]

MERGED_DTYPE_HELP = (
    "auto keeps that of the base model's files where the merged model then answers as the run does, and else takes "
    "float32, which loses nothing and takes twice the room of 16 bits. Without verification it keeps that of the files."
)


class ExportConfig(Section):
    """Settings of one export."""

    kind: ExportKind = setting(
        "adapter",
        label="Format",
        help="adapter is what was trained alone, small, to be loaded on its base; merged is a complete model with the "
        "adapter worked into its weights; gguf is the complete model in one file for llama.cpp, Ollama and LM Studio.",
    )
    dtype: ExportDtype = setting(
        "auto",
        label="Merged precision",
        help=MERGED_DTYPE_HELP,
    )
    gguf_type: GgufType = setting(
        "auto",
        label="GGUF precision",
        help="auto keeps 16 bits: bf16 for a bfloat16 model, else f16. q8_0 takes half the disk space and answers almost the same.",
    )
    keep_merged: bool = setting(
        False,
        label="Keep merged model",
        help="Also keep the merged model that the GGUF file is made from, in a folder named merged.",
    )
    max_shard_gb: float = setting(
        5.0,
        label="Max file size, GB",
        help="Larger models are split into several files.",
        gt=0,
        le=1000,
    )
    verify: bool = setting(
        True,
        label="Verify",
        help="Load the export and compare its answers with the run. It takes as long as a short chat.",
    )
