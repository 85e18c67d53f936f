"""The kinds of export: requirements, description and files of each.

`loratory.engine.export.worker.main`, which needs torch, writes and verifies them.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from loratory.engine.config.methods.base import PeftMethod
from loratory.engine.config.results import ExportConfig
from loratory.engine.errors import ModelError
from loratory.engine.export.compressed import require_scheme
from loratory.engine.export.gguf.llama_cpp import find_converter, require_quantizer
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
    # Each raises a ModelError where a program is missing, or cannot write it so; the folder is a llama.cpp checkout.
    needs: tuple[Callable[[ExportConfig, Path | None], object], ...] = ()
    precision: str = ""  # the field of the settings with its precision, where it has one of its own
    why_no_images: str = ""  # why it is not written of families that take images
    instead_of_images: str = ""

    def code_for(self, *, takes_images: bool = False) -> str:
        """Return an example that loads it, if it has a file; `{folder}` and `{base}` are filled in."""
        name = f"{self.name}-images.txt" if takes_images else f"{self.name}.txt"
        example = Path(__file__).with_name("examples") / name
        return example.read_text(encoding="utf-8") if example.exists() else ""

    def why_not(self, method: PeftMethod | None) -> str:
        """Return why this kind does not support a method; empty if it does."""
        return self.refusal(method) if method is not None else ""

    def require(
        self, method: PeftMethod | None, family: ImageFamily | None, settings: ExportConfig, llama_cpp: Path | None
    ) -> None:
        """Check a request before anything is written; `method` is None if it is unknown, `family` of a text model.

        Raises:
            ModelError: If this kind does not support the method or the family, or a program is missing.
        """
        if reason := self.why_not(method):
            raise ModelError(reason, self.instead)
        if self.why_no_images and family is not None:
            raise ModelError(self.why_no_images.format(family=family.label), self.instead_of_images)
        for check in self.needs:
            check(settings, llama_cpp)

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
    needs=(lambda _, llama_cpp: find_converter(llama_cpp), lambda settings, _: require_quantizer(settings.gguf_type)),
    precision="gguf_type",
    why_no_images="GGUF files of {family} are not written: they need a second one for what sees images (mmproj).",
    instead_of_images="Export it as merged; where llama.cpp's convert_hf_to_gguf.py has the family, run it with and without "
    "--mmproj.",
)
COMPRESSED = Kind(
    name="compressed",
    title="Compressed",
    about="The complete model in 8 or 4 bits as compressed-tensors, for vLLM and transformers, with the perplexity before and "
    "after.",
    settings=("compression", "max_shard_gb", "keep_merged"),
    relation="quantized",
    library="transformers",
    needs=(lambda settings, _: require_scheme(settings.compression),),
    precision="compression",
    why_no_images="Compressed models of {family} are not written: what sees images would have to stay as it is, which was not tried.",
    instead_of_images="Export it as merged, and compress that with llm-compressor.",
)
KINDS: Mapping[str, Kind] = {kind.name: kind for kind in (ADAPTER, MERGED, GGUF, COMPRESSED)}


def loads_in_transformers(kind: str) -> bool:
    """Return whether transformers and PEFT load exports of this kind."""
    return kind in KINDS and KINDS[kind].goes_to_hub
