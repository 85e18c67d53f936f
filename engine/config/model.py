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
        help="Branch, tag or commit on the Hub. Empty means the default branch, pinned to its commit when a run starts.",
        max_length=200,
    )
    quantization: Quantization = setting(
        "none",
        label="Precision of the frozen weights",
        help="none keeps 16 bits. int8 halves the weights, nf4 and fp4 quarter them (QLoRA); nf4 is the better of the two.",
    )
    double_quant: bool = setting(
        True,
        label="Double quantization",
        help="Also quantizes the scales of nf4 and fp4 blocks: saves about 0.4 bits per weight for no measurable loss.",
    )
    compute_dtype: ComputeDtype = setting(
        "auto",
        label="Compute precision",
        help="auto takes bfloat16 where the device is fast in it, else float16 on GPUs and float32 on CPUs, and says which.",
    )
    attn_implementation: AttentionImplementation = setting(
        "auto",
        label="Attention kernel",
        help="auto takes flash attention where it is installed and fits the model, else PyTorch's fused sdpa.",
    )
