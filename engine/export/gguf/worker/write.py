"""A run's result as one GGUF file: merged first, then converted, with a Modelfile beside it."""

import contextlib
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from gguf import GGUFReader

from engine.chat.worker.prompt import TalkingTokenizer, load_chat_tokenizer, render_prompt
from engine.config.export import ExportDtype
from engine.data.conversation import Message
from engine.export.gguf.converter import WrittenType, convert, find_converter, require_known_architecture
from engine.export.gguf.worker.ollama import common_system_prompt, write_modelfile
from engine.export.worker.write import ExportUnderWay, write_merged
from engine.runs.run import RunFolder

MERGED_FOLDER = "merged"
_ADD_BOS = "tokenizer.ggml.add_bos_token"
# Merged straight into the precision of the file, so that weights are rounded once.
_MERGED_DTYPE: dict[str, ExportDtype] = {"f16": "float16", "bf16": "bfloat16"}


class WrittenGguf(NamedTuple):
    """What was made, while the merged model is still there."""

    file: Path
    merged: Path
    gguf_type: WrittenType
    dtype: torch.dtype  # of the merged weights
    tokenizer: TalkingTokenizer
    implied_bos: str  # what llama.cpp puts in front of a prompt by itself


def write_gguf(export: ExportUnderWay, aside: Path, notes: list[str]) -> WrittenGguf:
    """Merge, convert, and write the Modelfile; the merged model stays until `finish`.

    Args:
        export: What is wanted.
        aside: The folder to fill.
        notes: Takes what the person should know.

    Raises:
        ModelError: If it cannot be merged, or the converter is missing or does not know the model.
    """
    order = export.order
    converter = find_converter(order.llama_cpp)
    base = export.trained.folder if export.trained.method == "full" else Path(export.source.location)
    require_known_architecture(converter, base, export.source.name)
    merged = aside / MERGED_FOLDER
    merged.mkdir()
    dtype = write_merged(export.with_dtype(_MERGED_DTYPE.get(order.settings.gguf_type)), merged, notes)
    gguf_type = _written_type(order.settings.gguf_type, dtype)
    tokenizer = load_chat_tokenizer([merged], merged, export.trained.name)
    file = aside / f"{_file_stem(order.name)}-{gguf_type}.gguf"
    expected = sum(path.stat().st_size for path in merged.glob("*.safetensors"))

    def tell(done_bytes: int) -> None:
        message = f"Writing {gguf_type} GGUF, {done_bytes / 1e9:.1f} GB so far."
        export.tell("writing", message, min(1.0, done_bytes / max(1, expected)))

    with _prepared_for_llama_cpp(merged, tokenizer):
        convert(converter, merged, file, gguf_type, tell)
    adds_bos = _adds_bos(file)
    system = common_system_prompt(RunFolder(order.run).read_config().dataset) if order.run is not None else None
    notes.append(write_modelfile(file, _file_stem(order.name).lower(), tokenizer, adds_bos=adds_bos, system=system))
    return WrittenGguf(file, merged, gguf_type, dtype, tokenizer, (tokenizer.bos_token or "") if adds_bos else "")


def finish(export: ExportUnderWay, written: WrittenGguf) -> None:
    """Remove the merged model, unless it is to be kept."""
    if not export.order.settings.keep_merged:
        shutil.rmtree(written.merged)


def _written_type(asked: str, merged: torch.dtype) -> WrittenType:
    types: dict[str, WrittenType] = {"f16": "f16", "bf16": "bf16", "q8_0": "q8_0"}
    return types.get(asked) or ("bf16" if merged is torch.bfloat16 else "f16")


def _file_stem(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name).strip("-.")[:80] or "model"


@contextlib.contextmanager
def _prepared_for_llama_cpp(merged: Path, tokenizer: TalkingTokenizer) -> Iterator[None]:
    """While it is converted, the merged folder says whether prompts begin with the begin-of-sequence token.

    llama.cpp puts that token first where the file tells it to. In training it stood there only if the template put it
    there. References to a model's own code are left out: the converter would run it.
    """
    bos = tokenizer.bos_token
    prompt = render_prompt((Message("user", "question"),), (), tokenizer).text
    files = [path for path in (merged / "tokenizer_config.json", merged / "config.json") if path.is_file()]
    kept = {path: path.read_bytes() for path in files}
    try:
        for path in files:
            values = json.loads(kept[path])
            values.pop("auto_map", None)
            if path.name == "tokenizer_config.json":
                values["add_bos_token"] = bool(bos) and prompt.startswith(bos or "")
            path.write_text(json.dumps(values, ensure_ascii=False), encoding="utf-8")
        yield
    finally:
        for path, data in kept.items():
            path.write_bytes(data)


def _adds_bos(file: Path) -> bool:
    """Whether llama.cpp will begin prompts with the begin-of-sequence token.

    Where the file does not say, it does so for SentencePiece vocabularies. Source: llama.cpp, src/llama-vocab.cpp.
    """
    reader = GGUFReader(file)
    field = reader.get_field(_ADD_BOS)
    if field is not None:
        return bool(field.contents())
    model = reader.get_field("tokenizer.ggml.model")
    return model is not None and model.contents() == "llama"
