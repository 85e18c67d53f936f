"""Exports: files, verification, and how to use them without Loratory."""

import contextlib
import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from engine.config.results import ExportKind, GgufType
from engine.export.contract import ExportedFile, ExportRecord, Verification
from engine.export.gguf.precisions import PredictedSize, instead_words
from engine.export.kinds import KINDS
from engine.runs.warm_start import ADAPTER_CONFIG
from ui.views.html import Column, Row, copyable, empty, facts, notices, pickable, plural, size, small, table

KIND_WORDS = {**{name: kind.title for name, kind in KINDS.items()}, "hub": "On the Hub", "script": "Exact script"}
_COMPARED = frozenset({*KINDS, "hub"})  # with the run
NO_EXPORTS = empty(
    "No exports yet", "An export appears here with its files and its verification, and stays with the run."
)


def render_record(record: ExportRecord) -> str:
    """Return one export: its place, its files and its verification."""
    if record.place.startswith(("https://", "http://")):  # a self-hosted Hub may have no certificate
        url = escape(record.place, quote=True)
        place = f'<p class="small"><a href="{url}" target="_blank" rel="noopener">{url}</a></p>'
    else:
        place = copyable(record.place, "path")
    state = f" of {escape(record.checkpoint)}" if record.checkpoint else ""
    verification = render_verification(record.verified) if record.kind in _COMPARED else ""
    return (
        f"<h3>{KIND_WORDS.get(record.kind, escape(record.kind))}{state}</h3>{verification}"
        f'{notices(record.notes)}<p class="small num">{plural(len(record.files), "file")}, {size(record.size_bytes)}, in</p>'
        f"{place}{_files(record.files)}"
    )


def render_verification(verification: Verification | None) -> str:
    """Return the result of the verification, with the largest difference."""
    if verification is None:
        return '<p class="sentence"><span class="tight">Not verified.</span> It was not compared with the run.</p>'
    answers = f"{verification.equal_answers} of {verification.prompts}"
    tolerance, perplexity = verification.allowed_logit_difference, verification.perplexity
    css, verdict, words = "yes", "Verified", f"It was loaded again: {answers} greedy answers are identical to the run."
    if not verification.passed:
        css, verdict = "no", "It differs from the run"
        words = f"It {escape(verification.difference)}. Do not use it; export the adapter instead."
    elif tolerance is None:
        verdict = "Verified within quantization"
        words = f"Its perplexity is close to the run's; {answers} greedy answers are identical."
    elif verification.equal_answers < verification.prompts:
        verdict = "Verified within rounding"
        words = f"{answers} greedy answers are identical; the rest differ where two tokens were about equally likely."
    figures = [
        (f"{verification.largest_logit_difference:.3g}", "largest logit difference"),
        *([(f"{tolerance:.3g}", "allowed for rounding")] if tolerance is not None else []),
        (answers, "identical greedy answers"),
    ]
    if perplexity is not None:
        figures[:0] = [(f"{perplexity.written:.2f}", "perplexity, file"), (f"{perplexity.run:.2f}", "perplexity, run")]
    if verification.equal_prompts is not None:
        figures.append((f"{verification.equal_prompts} of {verification.prompts}", "equal prompt ids"))
    needed = verification.needed_answers
    comparison = (
        f"Compared: {verification.compared}, computed in {verification.dtype}, in {verification.seconds:.0f} s."
        f"{f' At least {needed} identical answers were needed.' if needed else ''}"
    )
    if perplexity is not None:
        comparison += f" Perplexity on {perplexity.on}, {plural(perplexity.tokens, 'token')}."
    return f'<p class="sentence"><span class="{css}">{verdict}.</span> {words}</p>{facts(figures)}{small(comparison)}'


def render_sizes(sizes: Mapping[GgufType, PredictedSize]) -> str:
    """Return the size of a GGUF file by precision, and what llama.cpp cannot store."""
    if not sizes:
        return small("The base's weights are quantized already, so file sizes cannot be predicted.")
    words = f"Predicted from the base's tensors by llama.cpp's rules, within 1%. {instead_words(sizes)}"
    return facts((size(one.size_bytes), escape(name)) for name, one in sizes.items()) + small(words.strip())


def _files(files: Sequence[ExportedFile]) -> str:
    rows = (
        (escape(file.name), f'<span title="{file.size_bytes:,} bytes">{size(file.size_bytes)}</span>') for file in files
    )
    return table(["File", Column.of_numbers("Size")], rows, scrolls="scroll tall")


def render_records(records: Sequence[ExportRecord], chosen: int) -> str:
    """Return all exports of a run, newest first; a row can be picked."""
    if len(records) < 2:
        return ""
    columns = [
        Column("Format"), Column("Place", "soft where"), Column.of_numbers("Size"), Column("Verification", "tag"),
        Column("Time", "r soft"),
    ]  # fmt: skip
    rows = (_record(number, record, number == chosen) for number, record in enumerate(records))
    return f"<h3>Previous exports</h3>{table(columns, rows)}"


def _record(number: int, record: ExportRecord, is_chosen: bool) -> Row:
    verification = record.verified
    mark, verdict = "tight", "not verified"
    if verification is not None:
        mark, verdict = ("yes", "verified") if verification.passed else ("no", "differs from the run")
    kind = KIND_WORDS.get(record.kind, record.kind) + (f" · {record.checkpoint}" if record.checkpoint else "")
    cells = (
        escape(kind),
        escape(record.place),
        size(record.size_bytes),
        f'<span class="{mark}">{verdict}</span>' if record.kind in _COMPARED else "",
        record.time.astimezone().strftime("%d %b, %H:%M"),
    )
    return Row(cells, pickable(str(number), chosen=is_chosen))


def loading_script(folder: Path, base: str) -> str:
    """Return transformers and PEFT code that loads and prompts the export, as in its model card."""
    config = folder / ADAPTER_CONFIG
    with contextlib.suppress(OSError, ValueError, AttributeError):
        base = json.loads(config.read_text(encoding="utf-8")).get("base_model_name_or_path") or base
    kind = KINDS["adapter" if config.is_file() else "merged"]
    names = {"folder": str(folder), "base": base}
    return kind.code.format(**{name: json.dumps(value, ensure_ascii=False)[1:-1] for name, value in names.items()})


def render_script(script: str) -> str:
    """Return the code with a button that copies it."""
    lead = small("Plain transformers and PEFT; Loratory is not needed.")
    return f"<h3>Load it anywhere</h3>{lead}{copyable(script, 'code')}"


def render_command_line(run_id: str, kind: ExportKind) -> str:
    """Return commands for the same run; the last one exports it."""
    commands = (
        f'loratory show {run_id}\nloratory chat {run_id} --prompt "…"\n'
        f"loratory export {run_id} --to {kind} --out {kind}-model"
    )
    return f"<h3>From the terminal</h3>{copyable(commands, 'commands')}"
