"""A GGUF file compared with the run it was made from: by llama.cpp's own answers, or by what is in the file."""

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from gguf import GGUFReader, get_tensor_name_map
from gguf.constants import MODEL_ARCH_NAMES
from gguf.quants import dequantize

from engine.export.gguf.worker.write import WrittenGguf
from engine.export.worker.merge import BaseFiles
from engine.export.worker.verify import ANSWER_TOKENS, Reference
from engine.processes.json_lines import JsonLinesProcess

# So many greedy answers must be the same. llama.cpp rounds what flows between layers as it does the weights, which turns
# near ties: a few of them at the eleven bits of f16, more at the eight bits of the others.
_NEEDED_SHARE = {"f16": 0.9, "bf16": 0.5, "q8_0": 0.5}

# How many times the effect of rounding weights alone explains. q8_0 shares its scale among 32 weights or activations.
_ROUNDINGS = {"f16": 1.0, "bf16": 1.0, "q8_0": 2.0}

# What rounding does to a mean of squares, relative.
_TOLERANCE = {"f16": 1e-3, "bf16": 1e-2, "q8_0": 1e-2}

_LLAMA = "engine.export.gguf.worker.llama"


def has_llama_cpp() -> bool:
    """Return whether llama-cpp-python is installed."""
    return importlib.util.find_spec("llama_cpp") is not None


class AskedLlama(NamedTuple):
    """What llama.cpp makes of the same prompts."""

    equal_prompts: int
    equal_answers: int
    largest_difference: float
    needed_answers: int
    roundings: float  # so many times the effect of rounding the weights is explained


def ask_llama(
    written: WrittenGguf, reference: Reference, log_file: Path, report: Callable[[float], None]
) -> AskedLlama:
    """Let llama.cpp read the same prompts, in a process of its own, and compare ids, answers and logits.

    Args:
        written: The file.
        reference: The run's answers.
        log_file: Takes llama.cpp's messages.
        report: Gets the share of prompts that were asked; may raise to end it.

    Raises:
        ModelError: If llama.cpp cannot load the file.
        WorkerError: If its process died.
    """
    recorded = reference.answers
    logits_file = written.file.with_suffix(".npy")
    params = {
        "gguf": str(written.file),
        "context": max(len(one.prompt.ids) for one in recorded) + ANSWER_TOKENS,
        "prompts": [
            {
                "text": _text_for_llama(one.prompt.text, written.implied_bos),
                "answer": [int(token) for token in one.answer],
            }
            for one in recorded
        ],
        "end_ids": sorted(reference.end_ids),
        "answer_tokens": ANSWER_TOKENS,
        "logits": str(logits_file),
    }
    process = JsonLinesProcess(_LLAMA, log_file=log_file, restarts=False)
    try:
        answer = process.call("answer", params, on_progress=lambda told: report(told["fraction"]))
        logits = torch.from_numpy(np.load(logits_file, allow_pickle=False))
    finally:
        process.close(timeout_seconds=0.5)
        logits_file.unlink(missing_ok=True)
    expected = torch.cat([one.logits for one in recorded])
    width = min(logits.shape[-1], expected.shape[-1])  # either may pad its vocabulary
    return AskedLlama(
        equal_prompts=sum(list(one.prompt.ids) == ids for one, ids in zip(recorded, answer["prompt_ids"], strict=True)),
        equal_answers=sum(list(one.answer) == said for one, said in zip(recorded, answer["answers"], strict=True)),
        largest_difference=float((logits[:, :width] - expected[:, :width]).abs().max()),
        needed_answers=round(len(recorded) * _NEEDED_SHARE[written.gguf_type]),
        roundings=_ROUNDINGS[written.gguf_type],
    )


def look_into(written: WrittenGguf) -> str:
    """Compare header and tensors with the merged model, without llama.cpp; returns what was found, in words.

    Tensors are compared by their mean squares, because llama.cpp orders the rows of some of them in its own way.
    """
    reader = GGUFReader(written.file)
    strange = list(_strange_header(reader, written))
    compared, different = _compare_tensors(reader, written)
    strange += [f"the tensor {name} holds something else" for name in different[:3]]
    checked = (
        f"{compared} tensors hold what the merged ones do, within rounding; the vocabulary and the chat template too"
    )
    if not compared:
        strange.append("no tensor could be recognized by its name")
    if strange:
        checked = f"compared with the merged model, {'; '.join(strange)}"
    return (
        f"The GGUF was not run, because llama-cpp-python is not installed (pip install 'loratory[llama-cpp]'). "
        f"Looked at: {checked}."
    )


def _text_for_llama(text: str, implied_bos: str) -> str:
    return text.removeprefix(implied_bos)


def _strange_header(reader: GGUFReader, written: WrittenGguf) -> Iterator[str]:
    tokens = reader.get_field("tokenizer.ggml.tokens")
    vocabulary = written.tokenizer.get_vocab()
    if tokens is None or len(tokens.data) < len(vocabulary):
        yield "the vocabulary is smaller"
    template, trained = reader.get_field("tokenizer.chat_template"), written.tokenizer.chat_template
    if isinstance(trained, dict):  # several, with names: the file has the others under theirs
        trained = trained.get("default")
    if template is None or template.contents() != trained:
        yield "the chat template is not the trained one"
    eos = reader.get_field("tokenizer.ggml.eos_token_id")
    if eos is None or int(eos.contents()) != written.tokenizer.eos_token_id:
        yield "another token ends answers"


def _compare_tensors(reader: GGUFReader, written: WrittenGguf) -> tuple[int, list[str]]:
    names = _gguf_names(reader)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    merged = BaseFiles.open(written.merged, "the merged model")
    compared, different = 0, []
    for name, plan in merged.plans.items():
        tensor = tensors.get(names(name) or "")
        # Some families shift their norms, which are the tensors of one dimension; experts are stacked into one tensor.
        if tensor is None or len(plan.shape) < 2 or int(tensor.n_elements) != int(np.prod(plan.shape)):
            continue
        expected = float(merged.read(name).float().pow(2).mean())
        found = float(np.square(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32).mean(dtype=np.float64))
        compared += 1
        if not abs(found - expected) <= _TOLERANCE[written.gguf_type] * expected:
            different.append(name)
    return compared, different


def _gguf_names(reader: GGUFReader) -> Callable[[str], str | None]:
    """Return how llama.cpp calls the tensors of transformers."""
    field = reader.get_field("general.architecture")
    architecture = field.contents() if field is not None else ""
    known = {text: number for number, text in MODEL_ARCH_NAMES.items()}
    blocks = reader.get_field(f"{architecture}.block_count")
    if architecture not in known or blocks is None:
        return lambda _: None
    table = get_tensor_name_map(known[architecture], int(blocks.contents()))
    return lambda name: table.get_name(name, try_suffixes=(".weight",))
