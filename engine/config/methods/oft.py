"""OFT: orthogonal fine-tuning, Qiu et al. 2023 (arXiv:2306.07280), on inputs: Qiu et al. 2025 (arXiv:2506.19847)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from loratory.engine.config.methods.base import PeftMethod
from loratory.engine.section import Magnitude, Section, setting

if TYPE_CHECKING:
    from loratory.engine.config.run import AdapterConfig


class OftSettings(Section):
    """Settings of OFT."""

    oft_block_size: int = setting(32, "Block size", ge=2, le=1024)
    """Inputs that are rotated together. Larger blocks learn more and take more memory."""
    coft: bool = setting(False, "Constrained OFT")
    """Keeps rotations within eps of none, which protects what the model knows."""
    eps: Magnitude = setting(6e-5, "Freedom of rotation", gt=0.0, le=1.0)
    """How far constrained OFT may rotate. Only read with coft."""
    block_share: bool = setting(False, "Share blocks")
    """Uses one rotation for all blocks of a layer: far fewer parameters."""
    use_cayley_neumann: bool = setting(True, "Cayley-Neumann series")
    """Computes rotations by a short series instead of an inverse: faster."""
    num_cayley_neumann_terms: int = setting(5, "Terms of the series", ge=3, le=100)
    """More terms make rotations more exact and slower."""


class Oft(PeftMethod):
    """A rotation of the inputs of each layer, block by block."""

    name = "oft"
    label = "OFT"
    help = "OFT rotates the inputs of each layer and keeps angles between neurons: little is forgotten."
    peft_type = "OFT"
    peft_class = "OFTConfig"
    advanced = ("modules_to_save", "coft", "eps", "block_share", "use_cayley_neumann", "num_cayley_neumann_terms")
    fields = ("oft_block_size", "target_modules", *advanced)
    same_on_warm_start = ("oft_block_size", "block_share", "use_cayley_neumann", "num_cayley_neumann_terms")
    layer_kinds = frozenset({"linear"})
    card: ClassVar[Mapping[str, str]] = {"Block size": "{oft_block_size}"}
    tensor_marks = ("oft_",)

    def summary(self, adapter: AdapterConfig) -> str:
        """Return the block size."""
        return f"blocks of {adapter.oft_block_size}"
