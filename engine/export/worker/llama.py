"""The process that runs llama.cpp: `python -P -m loratory.engine.export.worker.llama`, JSON lines on stdio.

llama.cpp can end its process if a file is damaged; this one has nothing else to do.
"""

import ctypes
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np

from loratory.engine.errors import ModelError
from loratory.engine.processes.messages import JsonObject, Request, serve

_POLL_SECONDS = 0.2


def answer_prompts(params: JsonObject, request: Request) -> JsonObject:
    """Answer every prompt greedily, and compute the logits of another model's answers.

    Args:
        params: `gguf`, a file; `context`; `prompts`, each with `text` and `answer`, the ids of another model's answer;
            `end_ids`; `answer_tokens`; `logits`, the file for this model's logits of those answers.

    Returns:
        `prompt_ids` and `answers`, each in the order of the prompts.
    """
    llama = _load(params["gguf"], params["context"])
    end_ids = frozenset(params["end_ids"])
    prompts: list[dict[str, Any]] = params["prompts"]
    all_ids, answers, logits = [], [], []
    for number, prompt in enumerate(prompts, start=1):
        # As llama.cpp's own programs do: special tokens are parsed, and the file decides whether bos is added.
        ids = llama.tokenize(prompt["text"].encode(), add_bos=True, special=True)
        all_ids.append(list(ids))
        answer, answer_logits = _answer(llama, ids, params["answer_tokens"], end_ids)
        if answer != prompt["answer"]:  # otherwise its logits are known
            answer_logits = _answer(llama, ids, len(prompt["answer"]), frozenset(), prompt["answer"])[1]
        answers.append(answer)
        logits.append(answer_logits)
        request.progress({"fraction": number / len(prompts)})
    np.save(params["logits"], np.concatenate(logits), allow_pickle=False)
    return {"prompt_ids": all_ids, "answers": answers}


def sum_loss(params: JsonObject, request: Request) -> JsonObject:
    """Sum -log p over the tokens of rows that have labels.

    Args:
        params: `gguf`, a file; `context`; `rows`, each with `ids` and `labels`, -100 for masked tokens.

    Returns:
        `summed_loss`, in nats.
    """
    from llama_cpp import llama_get_logits_ith

    llama = _load(params["gguf"], params["context"], every_logit=True)
    rows: list[dict[str, list[int]]] = params["rows"]
    total = 0.0
    for number, row in enumerate(rows, start=1):
        llama.reset()
        llama.eval(row["ids"])
        for position, label in enumerate(row["labels"][1:]):
            if label >= 0:
                pointer = llama_get_logits_ith(llama.ctx, position)
                logits = np.ctypeslib.as_array(pointer, shape=(llama.n_vocab(),)).astype(np.float64)
                highest = logits.max()
                total += float(highest + np.log(np.exp(logits - highest).sum()) - logits[label])
        request.progress({"fraction": number / len(rows)})
    return {"summed_loss": total}


def quantize_file(params: JsonObject, request: Request) -> JsonObject:
    """Quantize a file with llama.cpp's library.

    Args:
        params: `source`, a file in 16 bits; `target`; `file_type`, llama.cpp's number.
        request: Gets the bytes written several times a second; may end the process.
    """
    import llama_cpp

    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype = params["file_type"]
    source, target = Path(params["source"]), Path(params["target"])
    codes: list[int] = []

    def run() -> None:  # ctypes releases the GIL
        codes.append(llama_cpp.llama_model_quantize(os.fsencode(source), os.fsencode(target), ctypes.byref(settings)))

    thread = threading.Thread(target=run, name="quantize", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(_POLL_SECONDS)
        request.progress({"bytes": target.stat().st_size if target.exists() else 0})
    if codes != [0] or not target.is_file():
        raise ModelError(
            "llama.cpp cannot quantize this model.", "Choose f16 or q8_0; see llama_cpp.log for the reason."
        )
    return {}


def _load(gguf: str, context: int, *, every_logit: bool = False) -> Any:
    from llama_cpp import Llama

    size = {"n_ctx": context + 8, "n_batch": max(512, context) if every_logit else 512}
    try:
        return Llama(gguf, **size, logits_all=every_logit, seed=0, n_gpu_layers=0, verbose=False)
    except (ValueError, AssertionError, RuntimeError) as error:
        raise ModelError(
            f"llama.cpp cannot load {Path(gguf).name} ({str(error)[:200]}).",
            "Update llama-cpp-python, which may be older than the model.",
        ) from error


def _answer(
    llama: Any, ids: list[int], count: int, end_ids: frozenset[int], forced_tokens: tuple[int, ...] | list[int] = ()
) -> tuple[list[int], np.ndarray]:
    """Return a greedy answer, or the given one, with the logits before each of its tokens: (tokens, vocabulary)."""
    from llama_cpp import llama_get_logits_ith

    llama.reset()
    answer: list[int] = []
    logits: list[np.ndarray] = []
    unread = list(ids)
    for number in range(count):
        llama.eval(unread)
        pointer = llama_get_logits_ith(llama.ctx, -1)
        logits.append(np.ctypeslib.as_array(pointer, shape=(llama.n_vocab(),)).copy())
        answer.append(forced_tokens[number] if forced_tokens else int(np.argmax(logits[-1])))
        if answer[-1] in end_ids:
            break
        unread = answer[-1:]
    return answer, np.stack(logits)


if __name__ == "__main__":
    serve({"answer": answer_prompts, "loss": sum_loss, "quantize": quantize_file})
