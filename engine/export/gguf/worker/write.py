"""A run's result as one GGUF file: merged first, then converted, with a Modelfile next to it."""

import contextlib
import json
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from gguf import GGUFReader

from engine.chat.worker.answer import TalkingTokenizer, end_token_ids, load_chat_tokenizer, render_prompt
from engine.config.results import ExportDtype
from engine.config.run import DatasetConfig
from engine.data.conversation import Conversation, Message
from engine.data.passes.reader import DatasetReader
from engine.data.source import SourceOptions
from engine.errors import EngineError
from engine.export.gguf.converter import WrittenType, convert, find_converter, require_known_architecture
from engine.export.gguf.go_template import NotTranslatableError, translate
from engine.export.worker.write import ExportUnderWay, write_merged
from engine.runs.run import RunFolder

MERGED_FOLDER = "merged"
_ADD_BOS = "tokenizer.ggml.add_bos_token"
# Merged straight into the precision of the file, so weights are rounded once.
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
    base = export.trained.folder if export.trained.is_whole_model else Path(export.source.location)
    require_known_architecture(converter, base, export.source.name)
    merged = aside / MERGED_FOLDER
    merged.mkdir()
    dtype = write_merged(export.with_dtype(_MERGED_DTYPE.get(order.settings.gguf_type)), merged, notes)
    gguf_type = _written_type(order.settings.gguf_type, dtype)
    tokenizer = load_chat_tokenizer([merged], merged, export.trained.name)
    file = aside / f"{_file_stem(order.name)}-{gguf_type}.gguf"
    expected = sum(path.stat().st_size for path in merged.glob("*.safetensors"))

    def report(done_bytes: int) -> None:
        message = f"Writing {gguf_type} GGUF, {done_bytes / 1e9:.1f} GB so far."
        export.report("writing", message, min(1.0, done_bytes / max(1, expected)))

    with _prepared_for_llama_cpp(merged, tokenizer):
        convert(converter, merged, file, gguf_type, report)
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

    llama.cpp puts that token first where the file says so. In training it was there only if the template put it
    there. References to a model's own code are left out: the converter would run it.
    """
    bos = tokenizer.bos_token
    prompt = render_prompt((Message("user", "question"),), tokenizer).text
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
    """Return whether llama.cpp will begin prompts with the begin-of-sequence token.

    Where the file does not say, it does so for SentencePiece vocabularies. Source: llama.cpp, src/llama-vocab.cpp.
    """
    reader = GGUFReader(file)
    field = reader.get_field(_ADD_BOS)
    if field is not None:
        return bool(field.contents())
    model = reader.get_field("tokenizer.ggml.model")
    return model is not None and model.contents() == "llama"


_LOOKED_AT_ROWS = 200

MODELFILE = "Modelfile"


def write_modelfile(gguf: Path, name: str, tokenizer: TalkingTokenizer, *, adds_bos: bool, system: str | None) -> str:
    """Write the Modelfile.

    Args:
        gguf: The file; the Modelfile is written next to it.
        name: What the model may be called in Ollama.
        tokenizer: With the trained template.
        adds_bos: Whether the GGUF makes llama.cpp put the begin-of-sequence token in front.
        system: System prompt that the training data always had.

    Returns:
        What the person should know, in words.
    """
    lines = [f"# ollama create {name} -f {MODELFILE}", f"FROM ./{gguf.name}", ""]
    bos = tokenizer.bos_token or ""

    def render(messages: Sequence[Message]) -> str:
        return render_prompt(messages, tokenizer).text

    try:
        template = translate(render, bos if adds_bos else "")
    except (NotTranslatableError, EngineError) as reason:
        why = reason.what if isinstance(reason, EngineError) else f"{reason}"
        note = (
            f"The Modelfile has no TEMPLATE: the chat template could not be translated for Ollama, because {why}. Ollama "
            "then guesses one from the GGUF's own, and its prompts may differ from those of training; llama.cpp and "
            "LM Studio read the trained template from the GGUF."
        )
        lines += ["# No TEMPLATE: the trained one, which the GGUF holds, cannot be said in Ollama's language.", ""]
    else:
        note = "The Modelfile's TEMPLATE renders sample conversations exactly as the trained chat template does."
        lines += [f'TEMPLATE """{template}"""', ""]
    if system is not None and '"""' not in system:
        lines += [f'SYSTEM """{system}"""', ""]
    stops = tokenizer.convert_ids_to_tokens(sorted(end_token_ids(tokenizer, None)))
    lines += [f'PARAMETER stop "{_escaped(stop)}"' for stop in stops]
    gguf.with_name(MODELFILE).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return note


def common_system_prompt(dataset: DatasetConfig) -> str | None:
    """The system prompt with which every one of the first rows begins, if the data can still be read and has one."""
    found: set[str] = set()
    try:
        for number, row in enumerate(DatasetReader(dataset, SourceOptions(streaming=True)).rows()):
            if isinstance(row.example, Conversation):
                first = row.example.messages[0]
                found.add(first.content if first.role == "system" else "")
            if number >= _LOOKED_AT_ROWS or len(found) > 1:
                break
    except EngineError:  # it is gone, or was never on this machine
        return None
    return found.pop() or None if len(found) == 1 else None


def _escaped(token: str) -> str:
    return token.replace("\\", "\\\\").replace('"', '\\"')
