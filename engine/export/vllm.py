"""vLLM's support for an adapter: the tensor names that it expects, and what it refuses.

vLLM maps the names of an adapter like those of the base's files, and silently skips tensors without a module. transformers
loads only the text part of some multimodal models (Qwen3.5, Llama 4): PEFT then names `model.layers.0` what the files name
`model.language_model.layers.0`. Sources: vLLM's lora/utils.py (parse_fine_tuned_lora_name), lora/peft_helper.py
and config/lora.py; github.com/vllm-project/vllm/issues/48019. Of vision-language models, vLLM knows PEFT's names too
(hf_to_vllm_mapper of each model).
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from loratory.engine.models.families.registry import family_of
from loratory.engine.models.folder import read_config, read_safetensors_header, weight_files
from loratory.engine.runs.provenance import ADAPTER_CONFIG, ADAPTER_WEIGHTS

VLLM_FOLDER = "vllm"  # of an export, with a copy of the adapter under other names

_PEFT_PREFIX = "base_model.model."
_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # that --max-lora-rank takes
_LORA_PART = re.compile(r"\.lora_(A|B|embedding_A|embedding_B)(\.weight)?$")


class VllmAdapter(NamedTuple):
    """vLLM's support for one adapter."""

    refusal: str = ""  # why vLLM does not load the adapter; empty if it does
    # Each tensor's name in vLLM, if some differ from PEFT's; None if they are unknown.
    names: Mapping[str, str] | None = {}
    rank: int = 0  # for `--max-lora-rank`
    takes_images: bool = False

    @property
    def note(self) -> str:
        """A note for the export; empty if vLLM reads the adapter as it is."""
        if self.names is None:
            return _UNKNOWN
        return _RENAMED if self.names else ""

    def section(self, folder: str, base: str) -> str:
        """Return the section of a model card; `folder` is the export's name."""
        if self.refusal:
            return f"## vLLM\n\nvLLM does not load this adapter: {self.refusal}. Merge it into its base first.\n"
        where = f"{folder}/{VLLM_FOLDER}" if self.names else folder
        command = f"vllm serve {base} --enable-lora --max-lora-rank {self.rank} --lora-modules tuned={where}"
        if self.takes_images:
            command += f" {_ONE_IMAGE}"
        notes = [note for note in (self.note, _MORE_IMAGES if self.takes_images else "") if note]
        return "\n".join([f"## vLLM\n\n```sh\n{command}\n```\n", *(f"{note}\n" for note in notes)])


_RENAMED = (
    f"The folder {VLLM_FOLDER} has the adapter under the names of the complete model, which vLLM reads; under those of its text "
    "part, which PEFT reads, vLLM would ignore it silently."
)
_ONE_IMAGE = """--limit-mm-per-prompt '{"image": 1}'"""
_MORE_IMAGES = (
    "The limit of one image a prompt saves memory; raise it for prompts with several. Pixels are those of the base's processor: "
    "for the size of images of the training, serve the merged model, or pass --mm-processor-kwargs."
)
_UNKNOWN = (
    "vLLM may ignore this adapter silently: its names are not those of the base's files. Compare answers with and "
    "without it, or merge it into its base."
)


def read_vllm_adapter(adapter: Path, base: Path, base_name: str) -> VllmAdapter:
    """Return vLLM's support for an adapter; only headers of weights are read.

    Raises:
        ModelError: If either cannot be read.
    """
    config = read_config(adapter / ADAPTER_CONFIG, "the adapter")
    if reason := _refusal(config):
        return VllmAdapter(refusal=reason)
    pattern = config.get("rank_pattern")
    rank_values = (config.get("r"), *(pattern.values() if isinstance(pattern, dict) else ()))
    ranks = [rank for rank in rank_values if isinstance(rank, int)]
    rank = next((supported for supported in _RANKS if supported >= max(ranks, default=0)), None)
    if rank is None:
        return VllmAdapter(refusal=f"its rank {max(ranks)} is above {_RANKS[-1]}")
    base_config = read_config(base / "config.json", base_name)
    if "text_config" not in base_config:  # the names are the same
        return VllmAdapter(rank=rank)
    tensor_names = [record.name for record in read_safetensors_header(adapter / ADAPTER_WEIGHTS, "the adapter")]
    if (family := family_of(base_config)) is not None:
        modules = (name.removeprefix(_PEFT_PREFIX) for name in tensor_names)
        if not family.vllm_takes_lora:
            return VllmAdapter(refusal=f"vLLM's {family.label} takes no LoRA")
        if any(map(family.part_of, modules)):
            return VllmAdapter(refusal="it adapts what sees images, and vLLM applies LoRA to the language model alone")
        return VllmAdapter(rank=rank, takes_images=True)
    tensors = (
        record.name for path in weight_files(base, base_name) for record in read_safetensors_header(path, base_name)
    )
    return VllmAdapter(names=names_for_vllm(tensor_names, tensors), rank=rank)


def _refusal(config: Mapping[str, Any]) -> str:
    if config.get("peft_type") != "LORA":
        return f"it is {str(config.get('peft_type')).replace('_', ' ')}, and vLLM loads only LoRA"
    if config.get("use_dora"):
        return "it uses DoRA"
    if config.get("modules_to_save"):
        return "it has whole modules (modules_to_save)"
    return "it has biases" if config.get("bias", "none") != "none" else ""


def names_for_vllm(names: Iterable[str], base_tensors: Iterable[str]) -> dict[str, str] | None:
    """Return the name in vLLM of each tensor of an adapter; empty if all are right, None if they are unknown.

    Args:
        names: As PEFT writes them.
        base_tensors: Names in the base's files.
    """
    targets: set[str] = set()
    for name in base_tensors:
        parts = name.split(".")
        targets.update(".".join(parts[:count]) for count in range(1, len(parts) + 1))
    modules = {name: _LORA_PART.sub("", name.removeprefix(_PEFT_PREFIX)) for name in names}
    unmatched_modules = {module.removeprefix("model.") for module in modules.values() if module not in targets}
    if not unmatched_modules:
        return {}
    tail = min(unmatched_modules)
    prefixes = {name.removesuffix(tail) for name in targets if name.endswith(f".{tail}")}
    fitting = [prefix for prefix in prefixes if all(f"{prefix}{module}" in targets for module in unmatched_modules)]
    if len(fitting) > 1:  # a vision tower may have layers of the same names
        fitting = [prefix for prefix in fitting if "language" in prefix or "text" in prefix]
    if len(fitting) != 1:
        return None
    return {
        name: name if module in targets else name.replace(module, f"{fitting[0]}{module.removeprefix('model.')}", 1)
        for name, module in modules.items()
    }
