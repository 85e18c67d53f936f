"""The process that turns a GGUF file into a dense safetensors folder that transformers, PEFT and TRL load as any other.

Run as `python -P -m loratory.engine.inspector.worker.convert_gguf`; `loratory.engine.models.prepared` is the one who asks.
"""

import functools
import math
import os
from pathlib import Path

import gguf as gguf_package
import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedTokenizerBase
from transformers.integrations.gguf.reader import GgufHeader, read_gguf_metadata

from loratory.engine.errors import ModelError, ModelLimitError
from loratory.engine.processes.limits import lift_memory_limit, limit_memory
from loratory.engine.processes.messages import JsonObject, Request, serve

os.environ["HF_HUB_OFFLINE"] = "1"  # everything needed is in the file; nothing may be looked up elsewhere

# transformers reads the head of a file three times, and makes the table of names once for each module: most of its time.
for _name in ("GGUFReader", "get_tensor_name_map"):
    setattr(gguf_package, _name, functools.cache(getattr(gguf_package, _name)))

# Vocabularies whose merges were learned with every digit by itself; llama.cpp splits them so (llama-vocab.cpp,
# LLAMA_VOCAB_PRE_TYPE_SMOLLM and its neighbours), transformers reads them with GPT-2's split alone.
_DIGITS_APART = frozenset({"smollm", "starcoder", "refact", "command-r", "codeshell"})


# A conversion allocates 0.7 GB without weights, 3 GB with the largest vocabulary; and 2.6 bytes for each weight.
_BASE_MEMORY_BYTES = 4 << 30
_BYTES_PER_WEIGHT = 8


def convert(params: JsonObject, request: Request) -> JsonObject:
    """Read `gguf`, write config, weights (bfloat16) and tokenizer into the folder `target`.

    bfloat16 halves the folder and costs nothing that can be noticed: on the demo model it moves the perplexity of real
    text from 7.4995 to 7.5030, less than computing in bfloat16 does (7.5116); training starts from bfloat16 anyway.

    Raises:
        ModelError: If the file is damaged, of an architecture that transformers cannot read, or needs more memory
            than one of its size does.
    """
    gguf, target = Path(params["gguf"]), Path(params["target"])
    request.progress({"message": f"Reading {gguf.name}."})
    try:
        limit_memory(_BASE_MEMORY_BYTES)  # a small file may list more than any model has
        tensors = GgufHeader.from_file(str(gguf)).tensors
        if sum(tensor.nbytes for tensor in tensors) > gguf.stat().st_size:
            raise ValueError("its tensors are larger than the file")
        lift_memory_limit()
        limit_memory(_BASE_MEMORY_BYTES + _BYTES_PER_WEIGHT * sum(math.prod(tensor.shape) for tensor in tensors))
        tokenizer = _load_tokenizer(gguf)
        request.progress({"message": "Unpacking the weights to bfloat16."})
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
        )
    except (ModelError, OSError):
        raise
    except MemoryError as error:
        what = f"Converting {gguf.name} needs more memory than a model of its size does."
        raise ModelLimitError(what, "Use the original model.") from error
    except Exception as error:
        # Parsers of a foreign binary format raise errors of any type.
        raise ModelError(
            f"{gguf.name} cannot be converted ({type(error).__name__}: {next(iter(str(error).splitlines()), 'no reason given')[:200]}).",
            "Choose a GGUF file of a causal language model that transformers can read, or the original model.",
        ) from error
    model.config.name_or_path = ""
    request.progress({"message": "Writing safetensors."})
    model.save_pretrained(target)
    tokenizer.model_max_length = getattr(model.config, "max_position_embeddings", tokenizer.model_max_length)
    tokenizer.save_pretrained(target)
    _prove(tokenizer, target, model.config.vocab_size)
    return {"parameters": model.num_parameters()}


def _load_tokenizer(gguf: Path) -> PreTrainedTokenizerBase:
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # How this vocabulary's text is split before merging, by llama.cpp's name for it.
    if read_gguf_metadata(str(gguf))[0].get("tokenizer.ggml.pre") in _DIGITS_APART:
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True),
            ]
        )
    return tokenizer


def _prove(tokenizer: PreTrainedTokenizerBase, target: Path, vocab_size: int) -> None:
    """Require that the saved tokenizer is the one that was read, reproduces text, and fits the embeddings."""
    reloaded = AutoTokenizer.from_pretrained(target)
    text = "In 2024, 3 of 17 runs failed;\n\n\tnaïve users said: “it's 98% done”."
    token_ids = reloaded(text, add_special_tokens=False)["input_ids"]
    if token_ids != tokenizer(text, add_special_tokens=False)["input_ids"] or reloaded.decode(token_ids) != text:
        raise ModelError(
            "The tokenizer of this GGUF file does not give text back as it was.", "Use the original model."
        )
    if len(reloaded) > vocab_size:
        raise ModelError(
            f"The tokenizer of this GGUF file has {len(reloaded)} tokens, its model {vocab_size}.",
            "Use the original model.",
        )


if __name__ == "__main__":
    lift_memory_limit()  # a data process may have started this one; `convert` sets the limit that suits the weights
    serve({"convert": convert})
