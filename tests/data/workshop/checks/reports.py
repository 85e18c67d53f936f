"""What row checks find in rows that a test writes."""

from loratory.engine.config.run import DatasetConfig
from loratory.engine.data.passes.check import finish
from loratory.engine.data.source import SourceOptions
from loratory.engine.data.workshop.checks.run import row_check_steps
from loratory.engine.data.workshop.checks.settings import CheckSettings
from tests.data.checks import write_rows

LONG = "The rank of an adapter bounds how much it can change the weights of its base model in training."


def talk(question, answer):
    """Return a row of two turns."""
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def report_of(path, rows, *names, eval_fraction=0.0, **settings):
    """Return the report of rows, written to a file."""
    config = DatasetConfig(source=str(write_rows(path / "rows.jsonl", rows)), eval_fraction=eval_fraction)
    return finish(row_check_steps(config, SourceOptions(), CheckSettings(**settings), names, seed=42))


def findings_of(path, rows, name, **settings):
    """Return rows and kinds of what one check finds."""
    (check,) = report_of(path, rows, name, **settings).checks
    return [(finding.row, finding.kind) for finding in check.findings]
