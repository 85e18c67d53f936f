"""`loratory inspect`, `render` and `data check`: what a dataset holds, which of its tokens are trained, and what is wrong."""

import contextlib
import itertools
from collections.abc import Iterator
from functools import partial
from typing import Annotated, Any

import typer
import yaml

from loratory.engine.commands.output import AsJson, ProgressLine, print_json, print_result, setting_options
from loratory.engine.config.load import section_from_mapping
from loratory.engine.config.run import DatasetConfig, ModelConfig
from loratory.engine.config.training import TrainingConfig
from loratory.engine.config.vision import VisionConfig
from loratory.engine.data.contract import CheckProgress, DatasetReport, RowProblem
from loratory.engine.data.records import row_label
from loratory.engine.data.render.tokenize import IGNORED_LABEL
from loratory.engine.data.source import SourceOptions
from loratory.engine.data.workshop.checks.settings import CheckSettings
from loratory.engine.errors import ConfigError, Problem
from loratory.engine.inspector.session import Inspector, RenderedSequence
from loratory.engine.lab.rules import with_allowed_scorers
from loratory.engine.models.prepared import DEMO_MODEL_ID, is_demo_prepared
from loratory.engine.paths import LoratoryHome
from loratory.engine.quantities import duration

_SHOWN_PROBLEMS = 20

DataArgument = Annotated[str, typer.Argument(help="A file or folder, a Hub id, or sample:NAME.")]
MaxLengthOption = Annotated[
    int | None, typer.Option("--max-length", min=8, help="Cut longer rows there, in tokens. Nothing is cut without it.")
]
ScorerOption = Annotated[
    list[str] | None,
    typer.Option(
        "--scorer", help="Rates the answers: a name, or as {scorer: number, tolerance: 0.1}; any number of times."
    ),
]
data_group = typer.Typer(name="data", help="Datasets with versions and edits.", no_args_is_help=True)
_MAPPINGS = {"column_map": "--map", "role_map": "--map-role"}
# For a command that reads rows; takes the names of more settings of a dataset.
dataset_options = partial(
    setting_options, DatasetConfig, "format", *_MAPPINGS, "subset", "split", "revision", **_MAPPINGS
)
_image_sizes = setting_options(VisionConfig, "min_pixels", "max_pixels", "do_image_splitting", group="sizes")


@dataset_options("train_on")
@_image_sizes
def inspect(
    data: DataArgument,
    settings: dict[str, Any],
    sizes: dict[str, Any],
    model: Annotated[
        str | None, typer.Option("--model", help="Whose tokenizer and chat template; as model.id of a configuration.")
    ] = None,
    max_length: MaxLengthOption = None,
    tokens: Annotated[
        bool, typer.Option(help="Count tokens; without --model, with the demo model if it is here.")
    ] = True,
    as_json: AsJson = False,
) -> None:
    """Check every row of a dataset: what is kept, what is left out and why, how long it is, what repeats."""
    home = LoratoryHome.from_environment()
    config = dataset_config(data, settings)
    name = (model or (DEMO_MODEL_ID if is_demo_prepared(home) else None)) if tokens else None
    counting = section_from_mapping(ModelConfig, {"id": name}) if name else None
    report = _check(config, counting, section_from_mapping(VisionConfig, sizes), max_length, home)
    # What the estimate needs of each row is too long to read.
    print_result(report.model_copy(update={"row_lengths": None}), report_text(report), as_json=as_json)


@dataset_options("train_on")
@_image_sizes
def render(
    data: DataArgument,
    settings: dict[str, Any],
    sizes: dict[str, Any],
    row: Annotated[int, typer.Option("--row", min=1, help="Number of the row, from 1.")],
    model: Annotated[str, typer.Option("--model", help="Whose tokenizer and chat template; as model.id.")],
    max_length: MaxLengthOption = None,
    as_json: AsJson = False,
) -> None:
    """Show one row exactly as training sees it: its text, its tokens, and which of them are trained."""
    config = dataset_config(data, settings)
    with contextlib.closing(Inspector(LoratoryHome.from_environment())) as inspector:
        counting = section_from_mapping(ModelConfig, {"id": model})
        vision = section_from_mapping(VisionConfig, sizes)
        sequences = inspector.render(config, counting, max_length, row=row - 1, vision=vision)
    if as_json:
        # The last sequence holds the conversation to its end; earlier ones exist where a template rewrites earlier turns.
        values = [sequence.model_dump(exclude={"pieces"}) for sequence in sequences]
        print_json({**values[-1], "sequences": values})
    else:
        typer.echo("\n\n".join(sequence_text(sequence) for sequence in sequences))


@data_group.command()
@dataset_options("eval_fraction")
@setting_options(CheckSettings, group="thresholds")
def check(
    data: DataArgument,
    settings: dict[str, Any],
    thresholds: dict[str, Any],
    scorer: ScorerOption = None,
    only: Annotated[str, typer.Option(help="Checks to run, with commas between them. Empty runs all.")] = "",
    most: Annotated[int, typer.Option(min=0, help="Findings to print of each check.")] = 10,
    as_json: AsJson = False,
) -> None:
    """Find duplicates, leaks, other languages, personal data, wrong encodings, refusals, mixed thinking and bad answers."""
    from loratory.engine.data.passes.check import finish
    from loratory.engine.data.workshop.checks.run import row_check_steps

    checks = section_from_mapping(CheckSettings, thresholds)
    home, names = LoratoryHome.from_environment(), only.replace(",", " ").split()
    config = with_allowed_scorers(dataset_config(data, settings | {"scorers": scorers_of(scorer)}), home)
    steps = row_check_steps(config, SourceOptions(home=home), checks, names, seed=TrainingConfig().seed)
    with ProgressLine() as line:
        result = finish(steps, lambda step: _show(line, step))
    print_result(result, "\n".join(result.lines(most)), as_json=as_json)


def scorers_of(texts: list[str] | None) -> list[Any]:
    """Return the settings of scorers from the options of a command."""
    return [yaml.safe_load(text) if text.startswith("{") else {"scorer": text} for text in texts or ()]


def dataset_config(data: str, settings: dict[str, Any]) -> DatasetConfig:
    """Return the settings of a dataset from the options of a command; those that cannot be used are a ConfigError."""
    for setting, option in _MAPPINGS.items():
        texts = settings[setting] or ()
        if wrong := [text for text in texts if not text.partition("=")[0].strip() or "=" not in text]:
            raise ConfigError([Problem(option, f"{wrong[0]!r} is not of the form name=value.")])
        settings[setting] = {name.strip(): value for name, _, value in (text.partition("=") for text in texts)}
    return section_from_mapping(DatasetConfig, {**settings, "source": data})


def _check(
    config: DatasetConfig, model: ModelConfig | None, vision: VisionConfig, max_length: int | None, home: LoratoryHome
) -> DatasetReport:
    """Check in this process where no tokenizer is needed, else in the one that has them."""
    from loratory.engine.data.passes.check import check_steps, finish

    seed = TrainingConfig().seed
    with ProgressLine() as line:
        show = partial(_show, line)
        if model is not None or config.images:
            with contextlib.closing(Inspector(home)) as inspector:
                return inspector.check(config, model, max_length, seed=seed, vision=vision, on_progress=show)
        return finish(check_steps(config, SourceOptions(home=home), seed=seed), show)


def _show(line: ProgressLine, progress: CheckProgress) -> None:
    tokens = f", {progress.tokens:,} tokens" if progress.tokens else ""
    line.show(f"{progress.rows:,} rows{tokens}", progress.fraction)


def report_text(report: DatasetReport) -> str:
    """Return a report for people."""
    format_name = report.format.replace("_", " ")
    lines = [
        f"{report.source}: {report.kind}, {report.rows:,} rows, read as {format_name} ({report.format_reason}).",
        f"Kept {report.kept:,}, left out {report.dropped:,}. {report.duplicates:,} repeat an earlier row.",
        f"{report.train_rows:,} to train on, {report.held_out_rows:,} held out.",
    ]
    if report.token_lengths is None or report.trained_tokens is None:
        lines.append("Tokens were not counted; give --model to count them.")
    else:
        lengths = report.token_lengths
        cut = (
            f"{lengths.over_max_length:,} longer than {report.max_length:,} are cut, "
            f"which loses {report.lost_trained_tokens:,} trained tokens."
            if report.max_length is not None
            else "None is cut."
        )
        lines += [
            f"Tokens of {report.model}: {report.trained_tokens:,} trained, {report.masked_tokens:,} masked.",
            f"Length of {report.sequences:,} sequences: shortest {lengths.min:,}, median {lengths.p50:,}, "
            f"95th percentile {lengths.p95:,}, longest {lengths.max:,}. {cut}",
        ]
    lines += [f"Note: {note}" for note in (*report.notes, *_preference_notes(report))]
    roles = report.unknown_roles.items()
    lines += [f"Unknown role {name!r} in {rows:,} rows, such as: {sample}" for name, (rows, sample) in roles]
    lines += _problem_lines("Left out", report.problems, report.dropped)
    lines += _problem_lines("Kept with warnings", report.notices, sum(report.notice_counts.values()))
    lines.append(f"Took {duration(report.seconds)}.")
    return "\n".join(lines)


def _preference_notes(report: DatasetReport) -> Iterator[str]:
    """Yield what is counted of pairs and ratings alone."""
    if (lengths := report.pair_lengths) is not None:
        yield (
            f"The chosen answer is longer in {lengths.chosen_longer:,} of {lengths.pairs:,} pairs, the rejected one in "
            f"{lengths.rejected_longer:,}; the median difference is {lengths.median:+,} {lengths.unit}."
        )
    if report.contradictions:
        rows = ", ".join(f"{row + 1:,}" for row in report.contradicting_rows[:_SHOWN_PROBLEMS])
        yield f"{report.contradictions:,} pairs prefer the opposite of another row with the same prompt: rows {rows}."
    if report.desirable is not None:
        yield f"{report.desirable:,} answers are rated good, {report.kept - report.desirable:,} bad."


def _problem_lines(title: str, problems: tuple[RowProblem, ...], count: int) -> Iterator[str]:
    if problems:
        yield f"{title}:"
    for problem in problems[:_SHOWN_PROBLEMS]:
        yield f"  {row_label(problem.row, problem.line):<12} {problem.problem}: {problem.sample}"
    if count > _SHOWN_PROBLEMS:
        yield f"  … and {count - _SHOWN_PROBLEMS:,} more; --json lists the first thousand."


def sequence_text(sequence: RenderedSequence) -> str:
    """Return a sequence for people, with trained text between ⟦ and ⟧."""
    text = ""
    pairs = zip(sequence.pieces, sequence.labels, strict=True)
    for is_trained, group in itertools.groupby(pairs, lambda pair: pair[1] != IGNORED_LABEL):
        pieces = "".join(piece for piece, _ in group)
        text += f"⟦{pieces}⟧" if is_trained else pieces
    trained_count = sum(label != IGNORED_LABEL for label in sequence.labels)
    cut = f", cut from {sequence.uncut_tokens:,}" if sequence.uncut_tokens > len(sequence.input_ids) else ""
    return (
        f"{text}\n\n{len(sequence.input_ids):,} tokens{cut}; {trained_count:,} of them, between ⟦ and ⟧, are trained."
    )


COMMANDS = (inspect, render, data_group)
