"""The rows on which a written file's perplexity is compared with the run's own: held-out rows, or general text."""

from collections.abc import Sequence
from typing import NamedTuple

from engine.chat.worker.answer import TalkingTokenizer
from engine.chat.worker.weights import BranchWeights
from engine.config.run import RunConfig
from engine.data.passes.prepare import prepare_dataset, spread_evenly
from engine.data.render.tokenize import TokenizedRow
from engine.errors import EngineError
from engine.evaluation.general_text import general_rows
from engine.export.worker.write import ExportUnderWay
from engine.runs.run import RunFolder

_MAX_ROWS, _MAX_TOKENS = 32, 512  # a few thousand tokens: seconds for small models, minutes for those of billions


class PerplexityRows(NamedTuple):
    """What both sides read."""

    rows: Sequence[TokenizedRow]
    on: str  # what they are, in words

    @property
    def tokens(self) -> int:
        """Trained tokens that something predicts."""
        return sum(label >= 0 for row in self.rows for label in row.labels[1:])


def choose_rows(export: ExportUnderWay, tokenizer: TalkingTokenizer) -> PerplexityRows:
    """Return rows that the run held out; general text where it held none out, or its data is gone."""
    rows = (
        _held_out(export, RunFolder(export.order.run).read_config(), tokenizer) if export.order.run is not None else []
    )
    if rows:
        return PerplexityRows(rows, f"{len(rows):,} held-out rows")
    return PerplexityRows(general_rows(tokenizer), "general text")


def _held_out(export: ExportUnderWay, config: RunConfig, tokenizer: TalkingTokenizer) -> list[TokenizedRow]:
    if config.dataset.eval_fraction == 0:
        return []
    export.report("verifying", "Reading the held-out rows.")
    training = config.training
    try:
        data = prepare_dataset(
            config.dataset,
            seed=training.seed,
            max_length=training.max_length,
            tokenizer=tokenizer,
            home=export.order.plan.home(export.home),
        )
    except EngineError:  # it is gone, or was never on this machine
        return []
    cut = (
        TokenizedRow(row.row, row.part, row.input_ids[:_MAX_TOKENS], row.labels[:_MAX_TOKENS])
        for row in spread_evenly(data.held_out, _MAX_ROWS)
    )
    return [row for row in cut if any(label >= 0 for label in row.labels[1:])]


def mean_loss(branch: BranchWeights, rows: PerplexityRows, export: ExportUnderWay) -> float:
    """Return the mean loss of a loaded model over all trained tokens, in nats."""
    total = 0.0
    for number, row in enumerate(rows.rows, start=1):
        total += branch.summed_loss(row.input_ids, row.labels)
        export.report("verifying", f"Measuring the run's perplexity, row {number:,} of {len(rows.rows):,}.")
    return total / rows.tokens
