"""Which model is trained, and in what precision its frozen weights are held."""

from typing import Literal

from engine.config.section import Section, setting

Quantization = Literal["none", "nf4", "fp4", "int8"]
ComputeDtype = Literal["auto", "bfloat16", "float16", "float32"]
AttentionImplementation = Literal["auto", "sdpa", "eager", "flash_attention_2"]


class ModelConfig(Section):
    """The base model."""

    id: str = setting(
        label="Model",
        help="A name from the catalogue, a Hugging Face Hub id such as Qwen/Qwen3-0.6B, a local folder, or a .gguf file.",
        min_length=1,
        max_length=400,
    )
    revision: str | None = setting(
        None,
        label="Revision",
        help="Branch, tag or commit on the Hub. Empty uses the default branch, pinned to its commit at the start.",
        max_length=200,
    )
    quantization: Quantization = setting(
        "none",
        label="Base precision",
        help="none keeps 16 bits, int8 halves the weights, nf4 and fp4 quarter them (QLoRA). nf4 is better than fp4.",
    )
    double_quant: bool = setting(
        True,
        label="Double quantization",
        help="Also quantizes the scales of nf4 and fp4: saves 0.4 bits per weight without measurable loss.",
    )
    compute_dtype: ComputeDtype = setting(
        "auto",
        label="Compute dtype",
        help="auto uses bfloat16 where the device is fast in it, else float16 on GPUs and float32 on CPUs.",
    )
    attn_implementation: AttentionImplementation = setting(
        "auto",
        label="Attention",
        help="auto uses flash attention where it is installed and fits the model, else sdpa.",
    )
