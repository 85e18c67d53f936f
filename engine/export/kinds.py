"""The kinds of export: what each needs, how it is described, and which files belong to it. Nothing else compares their names.

How a kind is written and verified is in `engine.export.worker.writers`, which needs torch.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from engine.config.methods.base import PeftMethod
from engine.errors import ModelError
from engine.export.gguf.converter import find_converter

_CARD = "README.md"
_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")

_GENERATE = """
prompt = tokenizer.apply_chat_template(
    [{{"role": "user", "content": "…"}}], add_generation_prompt=True, return_tensors="pt", return_dict=True
)
answer = model.generate(**prompt, max_new_tokens=200)
print(tokenizer.decode(answer[0, prompt["input_ids"].shape[1]:], skip_special_tokens=True))
"""


class Kind:
    """One kind of export. A subclass states what it is and overrides what it refuses.

    Attributes:
        name: Value of `kind` in settings and records.
        title: Name on the page.
        about: What it is, on the page.
        settings: Fields of the export's settings that it reads, besides `kind` and `verify`.
        card_noun: What a model card calls it.
        relation: To its base, as the Hub's front matter names it.
        library: That loads it, as the Hub names it.
        code: That loads and asks it; `{folder}` and `{base}` are filled in.
        goes_to_hub: Whether it can be pushed.
        noun: What messages call it.
        needed_files: Without which it is of no use on the Hub.
        instead: What to do where it cannot be had.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    about: ClassVar[str]
    settings: ClassVar[tuple[str, ...]] = ()
    card_noun: ClassVar[str] = "a complete model, made from an adapter and"
    relation: ClassVar[str] = "finetune"
    library: ClassVar[str]
    code: ClassVar[str]
    goes_to_hub: ClassVar[bool] = False
    noun: ClassVar[str] = "a complete model"
    needed_files: ClassVar[frozenset[str]] = frozenset({_CARD})
    instead: ClassVar[str] = "Export the adapter instead."

    def why_not(self, method: PeftMethod | None) -> str:
        """Return why what a method trained cannot be had in this kind; empty where it can."""
        if method is not None and not method.mergeable:
            return f"{method.label} cannot be merged: {method.why_not_mergeable}."
        return ""

    def require(self, method: PeftMethod | None, llama_cpp: Path | None) -> None:
        """Check what can be checked before anything is written.

        Args:
            method: That trained the weights; None where it is unknown.
            llama_cpp: A checkout whose converter is to be used.

        Raises:
            ModelError: If the weights cannot be had in this kind, or a program is missing.
        """
        del llama_cpp
        if reason := self.why_not(method):
            raise ModelError(reason, self.instead)

    def holds_weights(self, name: str) -> bool:
        """Return whether a file of this name decides how a repository of this kind is loaded."""
        del name
        return False


class _Adapter(Kind):
    name = "adapter"
    title = "Adapter"
    about = (
        "The adapter as a PEFT folder with tokenizer, chat template and model card. Small; loads with "
        "PeftModel.from_pretrained on its base."
    )
    card_noun = "an adapter for"
    relation = "adapter"
    library = "peft"
    goes_to_hub = True
    noun = "an adapter"
    needed_files = frozenset({_CARD, "adapter_config.json", "adapter_model.safetensors"})
    instead = "Export it as merged instead."
    code = (
        """\
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{folder}")
model = AutoModelForCausalLM.from_pretrained("{base}")
model = PeftModel.from_pretrained(model, "{folder}")
"""
        + _GENERATE
    )

    def why_not(self, method: PeftMethod | None) -> str:
        if method is not None and method.trains_all:
            return "This run trained the whole model, so there is no adapter."
        return ""

    def holds_weights(self, name: str) -> bool:
        return name in self.needed_files and name != _CARD


class _Merged(Kind):
    name = "merged"
    title = "Merged model"
    about = (
        "One complete model with the adapter merged into its weights, for servers that take no adapters. A QLoRA run is "
        "merged into the unquantized base."
    )
    settings = ("dtype", "max_shard_gb")
    library = "transformers"
    goes_to_hub = True
    needed_files = frozenset({_CARD, "config.json"})
    code = (
        """\
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{folder}")
model = AutoModelForCausalLM.from_pretrained("{folder}")
"""
        + _GENERATE
    )

    def holds_weights(self, name: str) -> bool:
        return name in ("model.safetensors", "model.safetensors.index.json") or _SHARD.fullmatch(name) is not None


class _Gguf(Kind):
    name = "gguf"
    title = "GGUF"
    about = (
        "The complete model in one file for llama.cpp, Ollama and LM Studio, with a Modelfile whose template is the trained "
        "one."
    )
    settings = ("gguf_type", "keep_merged")
    library = "llama.cpp"
    code = """\
import glob

from llama_cpp import Llama

llama = Llama(glob.glob("{folder}/*.gguf")[0])
answer = llama.create_chat_completion([{{"role": "user", "content": "…"}}], max_tokens=200)
print(answer["choices"][0]["message"]["content"])
"""

    def require(self, method: PeftMethod | None, llama_cpp: Path | None) -> None:
        super().require(method, llama_cpp)
        find_converter(llama_cpp)


ADAPTER, MERGED, GGUF = _Adapter(), _Merged(), _Gguf()
KINDS: Mapping[str, Kind] = {kind.name: kind for kind in (ADAPTER, MERGED, GGUF)}


def loads_in_transformers(kind: str) -> bool:
    """Return whether what a record calls this kind is a folder that transformers and PEFT load."""
    return kind in KINDS and KINDS[kind].goes_to_hub
