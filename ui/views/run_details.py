"""Facts, record and exports of one run."""

import contextlib
import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from loratory.engine.config.load import config_to_yaml
from loratory.engine.config.run import RunConfig
from loratory.engine.data.contract import DatasetReport
from loratory.engine.evaluation.server_check import ServerCheck
from loratory.engine.export.compressed import programs_for
from loratory.engine.export.contract import ExportedFile, ExportRecord, PerplexityCheck, Verification
from loratory.engine.export.folder import PROCESSOR_FILES
from loratory.engine.export.kinds import KINDS
from loratory.engine.runs.checkpoints import list_checkpoints
from loratory.engine.runs.provenance import ADAPTER_CONFIG
from loratory.engine.runs.summary import RunSummary
from loratory.engine.runs.usage import Electricity, energy_words
from loratory.ui.backend.run_reader import RunSnapshot
from loratory.ui.views import html
from loratory.ui.views.dataset import render_facts, render_lengths
from loratory.ui.views.rows import render_problems
from loratory.ui.views.run_table import when
from loratory.ui.views.run_view import method_words, objective_entries


def render_run_details(snapshot: RunSnapshot, row: RunSummary, electricity: Electricity, news: str = "") -> str:
    """Return facts beyond status and curves; `news` are those of its set."""
    config = snapshot.config
    of_config: list[tuple[str, str]] = []
    if config is not None:
        data = escape(config.dataset.source)
        revision = f" at {config.model.revision[:12]}" if config.model.revision else ""
        of_config = [
            ("Model", escape(config.model.id + revision)),
            ("Method", escape(method_words(config))),
            *objective_entries(config),
            ("Data", html.under(data, news) if news else data),
        ]
    speed = f", {row.tokens_per_second:,.0f} tokens/s" if row.tokens_per_second else ""
    entries = [
        ("Note", f'<span class="note">{escape(row.note)}</span>' if row.note else ""),
        ("Project", escape(row.project)),
        ("Tags", ", ".join(f"<span class=tag>{escape(tag)}</span>" for tag in row.tags)),
        *of_config,
        ("Trained tokens", f"{html.count(row.trained_tokens)}{speed}" if row.trained_tokens else ""),
        ("Trains", f"{row.trainable_parameters:,} parameters" if row.trainable_parameters else ""),
        ("Memory", run_memory(row)),
        ("Duration", run_duration(row)),
        ("Electricity", escape(energy_words(row, electricity))),
        ("Created", when(row.created) if row.created else ""),
        ("Merged from", escape(snapshot.provenance.origin_words)),
        ("Copied from", escape(snapshot.provenance.copied_from or "")),
        ("Id", f"<code>{escape(snapshot.run.id)}</code>"),
        ("On disk", html.size(row.size_bytes)),
    ]
    return html.definitions(entries, "details-grid")


def render_record(snapshot: RunSnapshot) -> str:
    """Return the record of a run as folds: configuration, data, environment and checkpoints."""
    folder = snapshot.run.folder
    count_words = html.plural(len(list_checkpoints(folder.checkpoints)), "checkpoint")
    config = html.small("Its config.yaml cannot be read.")
    if snapshot.config is not None:
        config = html.log(config_to_yaml(snapshot.config), "config.yaml")
    parts = [
        ("Configuration", config),
        ("Data", _data(folder.read_dataset_report())),
        ("Environment", _environment(snapshot)),
        (f"{count_words} on disk", _checkpoints(snapshot)),
    ]
    folds = ((f"<summary>{escape(title)}</summary>", content) for title, content in parts if content)
    return "".join(f'<details class="fold">{summary}{content}</details>' for summary, content in folds)


def _data(report: DatasetReport | None) -> str:
    if report is None:
        return ""
    notes = "".join(f"<li>{escape(note)}</li>" for note in report.notes)
    items = f"<ul class=small>{notes}</ul>" if notes else ""
    lead = html.small(f"{report.source}, read as {report.format}: {report.format_reason}.")
    return f"{lead}{render_facts(report)}{render_lengths(report)}{items}{render_problems(report)}"


def _environment(snapshot: RunSnapshot) -> str:
    provenance, parameters = snapshot.provenance, snapshot.history.parameters
    entries = [
        ("Loratory", provenance.loratory),
        ("Python", provenance.python),
        ("Platform", provenance.platform),
        *provenance.libraries.items(),
        ("Source of the model", provenance.model_source or ""),
        ("Fingerprint of the data", provenance.dataset_fingerprint or ""),
    ]
    if parameters is not None:
        entries += [
            ("Device", parameters.device),
            ("Compute dtype", parameters.compute_dtype),
            ("Attention", parameters.attn_implementation),
            ("Optimizer", parameters.optim),
            ("Batching", parameters.batching),
            *((name, why_not or "used") for name, why_not in parameters.optimizations.items()),
        ]
    return html.definitions(((escape(name), escape(value or "")) for name, value in entries), "details-grid")


def _checkpoints(snapshot: RunSnapshot) -> str:
    present = {point.step for point in list_checkpoints(snapshot.run.folder.checkpoints)}
    losses = {point.step: f"{point.eval_loss:.3f}" for point in snapshot.history.tuned_evals}
    rows = [
        (
            f"step {point.step:,}",
            html.size(point.size_bytes),
            losses.get(point.step, "–"),
            "best so far" if point.best else "",
            "" if point.step in present else "removed since",
        )
        for point in reversed(snapshot.history.checkpoints)
    ]
    numbers = map(html.Column.of_numbers, ("Size", "Held-out loss"))
    columns: list[html.Column | str] = ["Checkpoint", *numbers, "", html.Column("", "soft")]
    return html.table(columns, rows, scrolls="scroll tall") if rows else ""


def run_duration(row: RunSummary) -> str:
    """Return how long a run took; empty until it has ended."""
    return "" if row.seconds is None else html.duration(row.seconds)


def run_memory(row: RunSummary) -> str:
    """Return the measured and the predicted peak of memory, as far as they are known."""
    figures = ((row.peak_memory_bytes, "measured"), (row.predicted_bytes, "predicted"))
    return ", ".join(f"{size_bytes / html.GIB:.2f} GiB {word}" for size_bytes, word in figures if size_bytes)


def without_folders(config: RunConfig) -> RunConfig:
    """Return a configuration for other people's eyes: of paths, the last name alone."""
    return config.with_names(lambda _, text: Path(text).name if Path(text).is_absolute() else text)


KIND_WORDS = {**{name: kind.title for name, kind in KINDS.items()}, "hub": "On the Hub", "script": "Exact script"}
_COMPARED = frozenset({*KINDS, "hub"})  # with the run
NO_EXPORTS = html.empty(
    "No exports yet", "An export appears here with its files and its verification, and stays with the run."
)


def render_export(record: ExportRecord) -> str:
    """Return one export: its location, its files and its verification."""
    if record.location.startswith(("https://", "http://")):  # a self-hosted Hub may have no certificate
        url = escape(record.location, quote=True)
        location = f'<p class="small"><a href="{url}" target="_blank" rel="noopener">{url}</a></p>'
    else:
        location = html.copyable(record.location, "path")
    state = f" of {escape(record.checkpoint)}" if record.checkpoint else ""
    verification = render_verification(record.verified) if record.kind in _COMPARED else ""
    return (
        f"<h3>{KIND_WORDS.get(record.kind, escape(record.kind))}{state}</h3>{verification}"
        f'{html.notices(record.notes)}<p class="small num">{html.plural(len(record.files), "file")}, {html.size(record.size_bytes)}, in</p>'
        f"{location}{_files(record.files)}"
    )


def render_server_check(check: ServerCheck | None) -> str:
    """Return how a server's answers compare with a run's: each cause with its fix, and the figures."""
    if check is None:
        return html.empty("No server checked yet", "The result of a check appears here, and stays with the run.")
    css, verdict = ("yes", "Same answers") if check.is_same else ("no", "It answers otherwise")
    sentences = "".join(
        f'<p class="sentence"><span class="{css}">{verdict}.</span> {escape(finding.text)}</p>{html.small(finding.fix) if finding.fix else ""}'
        for finding in check.findings
    )
    evidence = check.evidence
    fit = evidence.chat["tuned"]
    figures = [
        (f"{evidence.prompts:,}", "prompts"),
        (f"{fit.likeliest:.1%}", "of the tokens are the run's likeliest"),
        (f"{evidence.chat['base'].likeliest:.1%}", "are the base model's"),
    ]
    if (difference := (evidence.completion or evidence.chat)["tuned"].difference) is not None:
        figures.append((f"{difference:.3f}", "mean difference of log-probabilities"))
    model = html.small(f"{evidence.model}, {check.time[:16].replace('T', ' ')} UTC")
    return sentences + html.facts(figures) + model + html.notices(check.notes)


def render_verification(verification: Verification | None) -> str:
    """Return the result of the verification, with the largest difference."""
    if verification is None:
        return '<p class="sentence"><span class="tight">Not verified.</span> It was not compared with the run.</p>'
    answers = f"{verification.equal_answers} of {verification.prompts}"
    tolerance, perplexity = verification.allowed_logit_difference, verification.perplexity
    css, verdict = "yes", "Verified"
    explanation = f"It was loaded again: {answers} greedy answers are identical to the run."
    if not verification.passed:
        css, verdict = "no", "It differs from the run"
        explanation = f"It {escape(verification.difference)}. Do not use it; export the adapter instead."
    elif tolerance is None:
        verdict = "Verified within quantization"
        explanation = f"Its perplexity is close to the run's; {answers} greedy answers are identical."
    elif verification.equal_answers < verification.prompts:
        verdict = "Verified within rounding"
        rest = "the rest differ where two tokens were about equally likely"
        explanation = f"{answers} greedy answers are identical; {rest}."
    figures = [
        (f"{verification.largest_logit_difference:.3g}", "largest logit difference"),
        *([(f"{tolerance:.3g}", "allowed for rounding")] if tolerance is not None else []),
        (answers, "identical greedy answers"),
    ]
    if perplexity is not None:
        figures[:0] = [(f"{perplexity.file:.2f}", "perplexity, file"), (f"{perplexity.run:.2f}", "perplexity, run")]
    if verification.equal_prompts is not None:
        figures.append((f"{verification.equal_prompts} of {verification.prompts}", "equal prompt ids"))
    needed = verification.needed_answers
    comparison = (
        f"Compared: {verification.comparison}, computed in {verification.dtype}, in {verification.seconds:.0f} s."
        f"{f' At least {needed} identical answers were needed.' if needed else ''}"
    )
    if perplexity is not None:
        comparison += f" Perplexity on {perplexity.on}, {html.plural(perplexity.tokens, 'token')}."
    return f'<p class="sentence"><span class="{css}">{verdict}.</span> {explanation}</p>{html.facts(figures)}{html.small(comparison)}'


def render_precisions(sizes: Mapping[str, int], records: Sequence[ExportRecord]) -> str:
    """Return every precision of an export with its size, its perplexity where the run has been exported so, and what runs it."""
    if not sizes:
        return html.small("The base's weights are quantized already, so file sizes cannot be predicted.")
    measured = {
        record.precision: record.verified.perplexity
        for record in reversed(records)
        if record.verified is not None and record.verified.perplexity is not None
    }
    columns: list[html.Column | str] = [
        "Precision",
        html.Column.of_numbers("Size"),
        html.Column.of_numbers("Perplexity"),
        html.Column("Runs in", "soft"),
    ]
    rows = (
        (escape(name), html.size(size_bytes), _rise(measured.get(name)), escape(programs_for(name)))
        for name, size_bytes in sizes.items()
    )
    note = "Sizes are predicted from the base's tensors. Perplexities are measured by exports of this run, against its own."
    return html.table(columns, rows) + html.small(note)


def _rise(perplexity: PerplexityCheck | None) -> str:
    return f"{perplexity.file:.2f} ({perplexity.file / perplexity.run - 1:+.1%})" if perplexity is not None else "–"


def _files(files: Sequence[ExportedFile]) -> str:
    rows = (
        (escape(file.name), f'<span title="{file.size_bytes:,} bytes">{html.size(file.size_bytes)}</span>')
        for file in files
    )
    return html.table(["File", html.Column.of_numbers("Size")], rows, scrolls="scroll tall")


def render_exports(records: Sequence[ExportRecord], chosen: int) -> str:
    """Return all exports of a run, newest first; a row can be picked."""
    if len(records) < 2:
        return ""
    columns = [
        html.Column("Format"), html.Column("Place", "soft where"), html.Column.of_numbers("Size"), html.Column("Verification", "tag"),
        html.Column("Time", "r soft"),
    ]  # fmt: skip
    rows = (_export(number, record, number == chosen) for number, record in enumerate(records))
    return f"<h3>Previous exports</h3>{html.table(columns, rows)}"


def _export(number: int, record: ExportRecord, is_chosen: bool) -> html.Row:
    verification = record.verified
    mark, verdict = "tight", "not verified"
    if verification is not None:
        mark, verdict = ("yes", "verified") if verification.passed else ("no", "differs from the run")
    kind = KIND_WORDS.get(record.kind, record.kind) + (f" · {record.checkpoint}" if record.checkpoint else "")
    cells = (
        escape(kind),
        escape(record.location),
        html.size(record.size_bytes),
        f'<span class="{mark}">{verdict}</span>' if record.kind in _COMPARED else "",
        record.time.astimezone().strftime("%d %b, %H:%M"),
    )
    return html.Row(cells, html.pickable(str(number), chosen=is_chosen))


def loading_script(folder: Path, base: str) -> str:
    """Return transformers and PEFT code that loads and prompts the export, as in its model card."""
    config = folder / ADAPTER_CONFIG
    with contextlib.suppress(OSError, ValueError, AttributeError):
        base = json.loads(config.read_text(encoding="utf-8")).get("base_model_name_or_path") or base
    kind = KINDS["adapter" if config.is_file() else "merged"]
    names = {"folder": str(folder), "base": base}
    code = kind.code_for(takes_images=(folder / PROCESSOR_FILES[0]).is_file())
    return code.format(**{name: json.dumps(value, ensure_ascii=False)[1:-1] for name, value in names.items()})


def render_script(script: str) -> str:
    """Return the code with a button that copies it."""
    lead = html.small("Plain transformers and PEFT; Loratory is not needed.")
    return f"<h3>Load it anywhere</h3>{lead}{html.copyable(script, 'code')}"


def render_command_line(run_id: str, kind: str) -> str:
    """Return commands for the same run; the last one exports it."""
    commands = (
        f'loratory show {run_id}\nloratory chat {run_id} --prompt "…"\n'
        f"loratory export {run_id} --to {kind} --out {kind}-model"
    )
    return f"<h3>From the terminal</h3>{html.copyable(commands, 'commands')}"
