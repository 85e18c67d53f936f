"""Export a run as a GGUF file with a Modelfile: merge, convert and compare with the run.

llama.cpp's answers are compared, or the file's header and tensors if llama.cpp is not installed.
"""

import contextlib
import itertools
import json
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from gguf import GGUFReader, get_tensor_name_map
from gguf.constants import MODEL_ARCH_NAMES
from gguf.quants import dequantize

from loratory.engine.chat.worker.answer import DecodingTokenizer, end_token_ids, load_chat_tokenizer, render_prompt
from loratory.engine.config.results import ExportDtype, GgufType
from loratory.engine.config.run import DatasetConfig
from loratory.engine.data.conversation import Conversation, Message
from loratory.engine.data.passes.reader import DatasetReader
from loratory.engine.data.source import SourceOptions
from loratory.engine.errors import EngineError
from loratory.engine.export.gguf.go_template import NotTranslatableError, translate
from loratory.engine.export.gguf.llama_cpp import (
    Converter,
    WrittenType,
    call_llama_cpp,
    convert,
    find_converter,
    require_known_architecture,
)
from loratory.engine.export.gguf.precisions import PRECISIONS
from loratory.engine.export.kinds import KINDS
from loratory.engine.export.worker.merge import BaseFiles
from loratory.engine.export.worker.verify import ANSWER_TOKENS, ModelDifference, PerplexityRows, Reference
from loratory.engine.export.worker.write import ExportTask, write_merged
from loratory.engine.runs.run import RunFolder

_SYSTEM_PROMPT_ROWS = 200

# Merged in the precision of the file, so weights are rounded once.
_MERGED_DTYPE: dict[str, ExportDtype] = {"f16": "float16", "bf16": "bfloat16"}


class WrittenGguf(NamedTuple):
    """The GGUF file, and the merged model that it was converted from."""

    file: Path
    merged: Path
    gguf_type: GgufType
    tokenizer: DecodingTokenizer
    implied_bos: str  # text that llama.cpp adds before a prompt


def write_gguf(export: ExportTask) -> WrittenGguf:
    """Merge, convert, and write the Modelfile; the merged model is kept for the comparison.

    Raises:
        ModelError: If it cannot be merged, or the converter is missing or does not support the model.
    """
    order = export.order
    KINDS[order.settings.kind].require(None, export.family, order.settings, order.llama_cpp)  # the base is here by now
    converter = find_converter(order.llama_cpp)
    base = export.trained.folder if export.trained.is_whole_model else Path(export.source.location)
    require_known_architecture(converter, base, export.source.name)
    merged = order.folder / "merged"
    merged.mkdir()
    dtype = write_merged(export.with_dtype(_MERGED_DTYPE.get(order.settings.gguf_type)), merged)
    gguf_type = order.settings.gguf_type
    if gguf_type == "auto":
        gguf_type = "bf16" if dtype is torch.bfloat16 else "f16"
    tokenizer = load_chat_tokenizer([merged], merged, export.trained.name)
    stem = re.sub(r"[^\w.-]+", "-", order.name).strip("-.")[:80] or "model"
    file = order.folder / f"{stem}-{gguf_type}.gguf"
    _write_file(export, converter, WrittenGguf(file, merged, gguf_type, tokenizer, ""), dtype)
    implied_bos = (tokenizer.bos_token or "") if _adds_bos(file) else ""
    system = _common_system_prompt(RunFolder(order.run).read_config().dataset) if order.run is not None else ""
    export.notes.append(_write_modelfile(file, stem.lower(), tokenizer, implied_bos, system))
    return WrittenGguf(file, merged, gguf_type, tokenizer, implied_bos)


def _write_file(export: ExportTask, converter: Converter, gguf: WrittenGguf, dtype: torch.dtype) -> None:
    """Convert; llama.cpp's library quantizes a 16-bit file to precisions that the converter cannot write."""
    file, merged = gguf.file, gguf.merged
    file_type = PRECISIONS[gguf.gguf_type].file_type
    sixteen: WrittenType = "bf16" if dtype is torch.bfloat16 else "f16"
    first_type: WrittenType = cast(WrittenType, gguf.gguf_type) if file_type is None else sixteen
    target = file if file_type is None else merged / f"{first_type}.gguf"
    expected = sum(path.stat().st_size for path in merged.glob("*.safetensors"))

    def report(step: str, done_bytes: int) -> None:
        message = f"{step}, {done_bytes / 1e9:.1f} GB so far."
        export.report("writing", message, min(1.0, done_bytes / max(1, expected)))

    with _prepared_for_llama_cpp(merged, gguf.tokenizer):
        convert(converter, merged, target, first_type, partial(report, f"Writing {first_type} GGUF"))
    if file_type is None:
        return
    params = {"source": str(target), "target": str(file), "file_type": file_type}
    step = f"Quantizing to {gguf.gguf_type}"
    try:
        call_llama_cpp(
            "quantize", params, export.home.server / "llama_cpp.log", lambda progress: report(step, progress["bytes"])
        )
    finally:
        target.unlink(missing_ok=True)


@contextlib.contextmanager
def _prepared_for_llama_cpp(merged: Path, tokenizer: DecodingTokenizer) -> Iterator[None]:
    """Set whether prompts begin with the begin-of-sequence token in the merged folder during the conversion.

    llama.cpp adds that token if the file says so; in training it was there only if the template added it. References to
    a model's own code are removed, because the converter would run it.
    """
    bos = tokenizer.bos_token
    prompt = render_prompt((Message("user", "question"),), tokenizer).text
    files = [path for path in (merged / "tokenizer_config.json", merged / "config.json") if path.is_file()]
    contents = {path: path.read_bytes() for path in files}
    try:
        for path in files:
            values = json.loads(contents[path])
            values.pop("auto_map", None)
            if path.name == "tokenizer_config.json":
                values["add_bos_token"] = bool(bos) and prompt.startswith(bos or "")
            path.write_text(json.dumps(values, ensure_ascii=False), encoding="utf-8")
        yield
    finally:
        for path, data in contents.items():
            path.write_bytes(data)


def _adds_bos(file: Path) -> bool:
    """Return whether llama.cpp adds the begin-of-sequence token to prompts.

    The default is true for SentencePiece vocabularies. Source: llama.cpp, src/llama-vocab.cpp.
    """
    reader = GGUFReader(file)
    flag = _field(reader, "tokenizer.ggml.add_bos_token")
    return bool(flag) if flag is not None else _field(reader, "tokenizer.ggml.model") == "llama"


def _field(reader: GGUFReader, name: str) -> Any:
    field = reader.get_field(name)
    return field.contents() if field is not None else None


def _common_system_prompt(dataset: DatasetConfig) -> str:
    """Return the system prompt that the first rows share; empty if they differ or cannot be read any more."""
    with contextlib.suppress(EngineError):
        rows = itertools.islice(DatasetReader(dataset, SourceOptions(streaming=True)).rows(), _SYSTEM_PROMPT_ROWS)
        first_turns = [row.example.messages[0] for row in rows if isinstance(row.example, Conversation)]
        prompts = {turn.content if turn.role == "system" else "" for turn in first_turns}
        return prompts.pop() if len(prompts) == 1 else ""
    return ""


def _write_modelfile(gguf: Path, name: str, tokenizer: DecodingTokenizer, implied_bos: str, system: str) -> str:
    """Write the Modelfile next to the GGUF, and return a note about its template."""
    lines = [f"# ollama create {name} -f Modelfile", f"FROM ./{gguf.name}", ""]
    try:
        template = translate(lambda messages: render_prompt(messages, tokenizer).text, implied_bos)
    except (NotTranslatableError, EngineError) as reason:
        why = reason.what if isinstance(reason, EngineError) else f"{reason}"
        note = (
            f"The Modelfile has no TEMPLATE: the chat template could not be translated for Ollama, because {why}. Ollama "
            "then guesses one from the GGUF's own, and its prompts may differ from those of training; llama.cpp and "
            "LM Studio read the trained template from the GGUF."
        )
        lines += ["# No TEMPLATE: the trained one, which is in the GGUF, cannot be expressed in Ollama's language.", ""]
    else:
        note = "The Modelfile's TEMPLATE renders sample conversations exactly as the trained chat template does."
        lines += [f'TEMPLATE """{template.go_text}"""', ""]
    if system and '"""' not in system:
        lines += [f'SYSTEM """{system}"""', ""]
    for stop in tokenizer.convert_ids_to_tokens(sorted(end_token_ids(tokenizer, None))):
        escaped = stop.replace("\\", "\\\\").replace('"', '\\"')
        lines.append(f'PARAMETER stop "{escaped}"')
    gguf.with_name("Modelfile").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return note


def compare_answers(
    gguf: WrittenGguf, reference: Reference, log_file: Path, report: Callable[[float], None]
) -> ModelDifference:
    """Have llama.cpp answer the same prompts, and compare token ids, answers and logits.

    `report` is called with the completed share, and may raise to stop.

    Raises:
        ModelError: If llama.cpp cannot load the file.
        WorkerError: If the process died.
    """
    answers = reference.answers
    logits_file = gguf.file.with_suffix(".npy")
    params = {
        "gguf": str(gguf.file),
        "context": max(len(record.prompt.ids) for record in answers) + ANSWER_TOKENS,
        "prompts": [
            {"text": record.prompt.text.removeprefix(gguf.implied_bos), "answer": list(record.answer)}
            for record in answers
        ],
        "end_ids": sorted(reference.end_ids),
        "answer_tokens": ANSWER_TOKENS,
        "logits": str(logits_file),
    }
    try:
        answer = call_llama_cpp("answer", params, log_file, lambda progress: report(progress["fraction"]))
        logits = torch.from_numpy(np.load(logits_file, allow_pickle=False))
    finally:
        logits_file.unlink(missing_ok=True)
    share = PRECISIONS[gguf.gguf_type].needed_share
    expected = torch.cat([record.logits for record in answers])
    width = min(logits.shape[-1], expected.shape[-1])  # either may pad its vocabulary
    return ModelDifference(
        largest_logit_difference=float((logits[:, :width] - expected[:, :width]).abs().max()),
        equal_answers=sum(
            list(record.answer) == llama_answer for record, llama_answer in zip(answers, answer["answers"], strict=True)
        ),
        equal_prompts=sum(
            list(record.prompt.ids) == ids for record, ids in zip(answers, answer["prompt_ids"], strict=True)
        ),
        needed_answers=round(len(answers) * share) if share is not None else None,
    )


def mean_loss_of_gguf(
    gguf: WrittenGguf, rows: PerplexityRows, log_file: Path, report: Callable[[float], None]
) -> float:
    """Return llama.cpp's mean loss over the trained tokens of rows, in nats.

    `report` is called with the completed share, and may raise to stop.

    Raises:
        ModelError: If llama.cpp cannot load the file.
        WorkerError: If the process died.
    """
    params = {
        "gguf": str(gguf.file),
        "context": max(len(row.input_ids) for row in rows.rows),
        "rows": [{"ids": row.input_ids, "labels": row.labels} for row in rows.rows],
    }
    answer = call_llama_cpp("loss", params, log_file, lambda progress: report(progress["fraction"]))
    return float(answer["summed_loss"]) / rows.tokens


def compare_with_merged(gguf: WrittenGguf) -> str:
    """Compare header and tensors with the merged model, without llama.cpp; return a note.

    Tensors are compared by their mean squares, because llama.cpp reorders the rows of some of them.
    """
    reader = GGUFReader(gguf.file)
    tensor_count, different = _compare_tensors(reader, gguf)
    strange = [
        *_strange_header(reader, gguf),
        *(f"the tensor {name} differs" for name in different[:3]),
        *([] if tensor_count else ["no tensor has a known name"]),
    ]
    if strange:
        summary = f"compared with the merged model, {'; '.join(strange)}"
    else:
        summary = f"{tensor_count} tensors agree with the merged model within rounding; so do the vocabulary and the chat template"
    return (
        f"The GGUF was not run, because llama-cpp-python is not installed (pip install 'loratory[llama-cpp]'). "
        f"Checked: {summary}."
    )


def _strange_header(reader: GGUFReader, gguf: WrittenGguf) -> Iterator[str]:
    tokens = reader.get_field("tokenizer.ggml.tokens")
    if tokens is None or len(tokens.data) < len(gguf.tokenizer.get_vocab()):
        yield "the vocabulary is smaller"
    trained = gguf.tokenizer.chat_template
    if isinstance(trained, dict):  # several, by name
        trained = trained.get("default")
    if trained is None or _field(reader, "tokenizer.chat_template") != trained:
        yield "the chat template is not the trained one"
    if _field(reader, "tokenizer.ggml.eos_token_id") != gguf.tokenizer.eos_token_id:
        yield "the stop token differs"


def _compare_tensors(reader: GGUFReader, gguf: WrittenGguf) -> tuple[int, list[str]]:
    names = _gguf_names(reader)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    merged = BaseFiles.open(gguf.merged, "the merged model")
    tensor_count, different = 0, []
    for name, plan in merged.plans.items():
        tensor = tensors.get(names(name) or "")
        # Some families shift their norms, which have one dimension; experts are stacked into one tensor.
        if tensor is None or len(plan.shape) < 2 or int(tensor.n_elements) != int(np.prod(plan.shape)):
            continue
        expected = float(merged.read(name).float().pow(2).mean())
        mean_square = float(
            np.square(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32).mean(dtype=np.float64)
        )
        tensor_count += 1
        if not abs(mean_square - expected) <= PRECISIONS[gguf.gguf_type].tolerance * expected:
            different.append(name)
    return tensor_count, different


def _gguf_names(reader: GGUFReader) -> Callable[[str], str | None]:
    architecture = _field(reader, "general.architecture")
    architectures = {text: number for number, text in MODEL_ARCH_NAMES.items()}
    blocks = _field(reader, f"{architecture}.block_count")
    if architecture not in architectures or blocks is None:
        return lambda _: None
    table = get_tensor_name_map(architectures[architecture], int(blocks))
    return lambda name: table.get_name(name, try_suffixes=(".weight",))
