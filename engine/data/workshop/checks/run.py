"""The row checks, by name, and how they run over a dataset: all in one pass."""

import time
from collections.abc import Generator, Mapping, Sequence

from loratory.engine.config.run import DatasetConfig
from loratory.engine.data.contract import CheckProgress
from loratory.engine.data.passes.check import pass_steps
from loratory.engine.data.passes.reader import DatasetReader, DatasetRow
from loratory.engine.data.source import SourceOptions
from loratory.engine.data.workshop.checks.base import CheckContext, CheckedRow, RowCheck, RowCheckReport
from loratory.engine.data.workshop.checks.duplicates import Duplicates, Leakage, NearDuplicates
from loratory.engine.data.workshop.checks.personal_data import PersonalData
from loratory.engine.data.workshop.checks.quality import Quality, own_answer
from loratory.engine.data.workshop.checks.settings import CheckSettings
from loratory.engine.data.workshop.checks.text import Language, Mojibake, Refusals, Thinking
from loratory.engine.errors import ConfigError, Problem

CHECKS: Mapping[str, type[RowCheck]] = {
    "duplicates": Duplicates,
    "near_duplicates": NearDuplicates,
    "leakage": Leakage,
    "language": Language,
    "personal_data": PersonalData,
    "mojibake": Mojibake,
    "refusals": Refusals,
    "thinking": Thinking,
    "quality": Quality,
}


def row_check_steps(
    config: DatasetConfig, options: SourceOptions, settings: CheckSettings, names: Sequence[str] = (), *, seed: int
) -> Generator[CheckProgress | None, None, RowCheckReport]:
    """Run checks, all where none is named; yields as `check_steps` does. The seed selects the held-out rows.

    Raises:
        ConfigError: If a check is unknown.
        DatasetError: If the source or a file of the settings cannot be read, or no row of it can be trained on.
    """
    if unknown := [name for name in names if name not in CHECKS]:
        raise ConfigError([Problem("--only", f"{unknown[0]!r} is not a check; they are {', '.join(CHECKS)}.")])
    started = time.monotonic()
    reader = DatasetReader(config, options)
    context = CheckContext(settings, options, scorers=config.scorers)
    checks = {name: CHECKS[name](context) for name in CHECKS if not names or name in names}

    def add(row: DatasetRow) -> None:
        checked = CheckedRow.from_row(row)._replace(answer=own_answer(row) if config.scorers else None)
        for check in checks.values():
            check.add(checked)

    result = context.result = yield from pass_steps(reader, seed, add)
    for check in checks.values():
        check.finish()
        yield None
    findings = [finding for check in checks.values() for finding in (*check.findings, *check.below)]
    numbers = sorted({row for finding in findings for row in (finding.row, *finding.partners)})
    samples = {record.row: record.sample() for record in reader.pick(numbers) if record is not None}
    return RowCheckReport(
        **result.report.model_dump(include={"source", "rows", "train_rows", "held_out_rows"}),
        settings=settings,
        scorers=config.scorers,
        checks=tuple(check.outcome(name, samples) for name, check in checks.items()),
        seconds=time.monotonic() - started,
    )
