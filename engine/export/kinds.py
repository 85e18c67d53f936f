"""The kinds of export: requirements, description and files of each.

`loratory.engine.export.worker.main`, which needs torch, writes and verifies them.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from loratory.engine.config.methods.base import PeftMethod
from loratory.engine.errors import ModelError
from loratory.engine.export.gguf.llama_cpp import find_converter
from loratory.engine.models.families.base import ImageFamily


def _must_be_mergeable(method: PeftMethod) -> str:
    return "" if method.mergeable else f"{method.label} cannot be merged: {method.why_not_mergeable}."


def _must_have_adapter(method: PeftMethod) -> str:
    return "This run trained the whole model, so there is no adapter." if method.trains_all else ""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of export."""

    name: str  # value of `kind` in settings and records
    title: str  # on the page
    about: str  # help text on the page
    settings: tuple[str, ...] = ()  # fields of the export's settings that apply, besides `kind` and `verify`
    card_noun: str = "a complete model, made from an adapter and"  # in a model card
    relation: str = "finetune"  # to its base, in the Hub's front matter
    library: str  # that loads it, in the Hub's front matter
    goes_to_hub: bool = False
    noun: str = "a complete model"  # in messages
    needed_files: frozenset[str] = frozenset({"README.md"})  # required on the Hub
    weights: str = ""  # pattern of the files that determine how a repository is loaded
    refusal: Callable[[PeftMethod], str] = _must_be_mergeable  # why a method is not supported; empty if it is
    instead: str = "Export the adapter instead."  # the fix if it is not
    takes_converter: bool = False

    def code_for(self, *, takes_images: bool = False) -> str:
        """Return an example that loads it, if it has a file; `{folder}` and `{base}` are filled in."""
        name = f"{self.name}-images.txt" if takes_images else f"{self.name}.txt"
        example = Path(__file__).with_name("examples") / name
        return example.read_text(encoding="utf-8") if example.exists() else ""

    def why_not(self, method: PeftMethod | None) -> str:
        """Return why this kind does not support a method; empty if it does."""
        return self.refusal(method) if method is not None else ""

    def require(self, method: PeftMethod | None, family: ImageFamily | None, llama_cpp: Path | None) -> None:
        """Check a request before anything is written; `method` is None if it is unknown, `family` of a text model.

        Raises:
            ModelError: If this kind does not support the method or the family, or a program is missing.
        """
        if reason := self.why_not(method):
            raise ModelError(reason, self.instead)
        if self.takes_converter and family is not None:
            what = (
                f"GGUF files of {family.label} are not written: they need a second one for what sees images (mmproj)."
            )
            fix = "Export it as merged; where llama.cpp's convert_hf_to_gguf.py has the family, run it with and without --mmproj."
            raise ModelError(what, fix)
        if self.takes_converter:
            find_converter(llama_cpp)

    def holds_weights(self, name: str) -> bool:
        """Return whether a file of this name determines how a repository of this kind is loaded."""
        return bool(self.weights) and re.fullmatch(self.weights, name) is not None


ADAPTER = Kind(
    name="adapter",
    title="Adapter",
    about="The adapter as a PEFT folder with tokenizer, chat template and model card. Small; loads with "
    "PeftModel.from_pretrained on its base.",
    card_noun="an adapter for",
    relation="adapter",
    library="peft",
    goes_to_hub=True,
    noun="an adapter",
    needed_files=frozenset({"README.md", "adapter_config.json", "adapter_model.safetensors"}),
    weights=r"(vllm/)?(adapter_config\.json|adapter_model\.safetensors)",
    refusal=_must_have_adapter,
    instead="Export it as merged instead.",
)
MERGED = Kind(
    name="merged",
    title="Merged model",
    about="One complete model with the adapter merged into its weights, for servers that take no adapters. A QLoRA run is "
    "merged into the unquantized base.",
    settings=("dtype", "max_shard_gb"),
    library="transformers",
    goes_to_hub=True,
    needed_files=frozenset({"README.md", "config.json"}),
    weights=r"model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json",
)
GGUF = Kind(
    name="gguf",
    title="GGUF",
    about="The complete model in one file for llama.cpp, Ollama and LM Studio, with a Modelfile whose template is the trained "
    "one.",
    settings=("gguf_type", "keep_merged"),
    library="llama.cpp",
    takes_converter=True,
)
KINDS: Mapping[str, Kind] = {kind.name: kind for kind in (ADAPTER, MERGED, GGUF)}


def loads_in_transformers(kind: str) -> bool:
    """Return whether transformers and PEFT load exports of this kind."""
    return kind in KINDS and KINDS[kind].goes_to_hub
