"""Losses of tokens, each computed once: a file has those of every sequence that these weights have read."""

import hashlib
from collections.abc import Sequence
from heapq import nsmallest

from loratory.engine.chat.contract import Branch, FrozenModel
from loratory.engine.chat.worker.answer import DecodingTokenizer, TextStream
from loratory.engine.chat.worker.weights import BranchWeights, ModelSpec
from loratory.engine.data.render.template import control_token_ids
from loratory.engine.data.render.tokenize import TokenizedRow
from loratory.engine.evaluation.job import WORSE_BY, RowLoss, RowTokens
from loratory.engine.evaluation.worker.answers import Evaluation, batches_of_prompts
from loratory.engine.files import append_model, stream_models
from loratory.engine.models.fingerprint import sha256_once
from loratory.engine.paths import LoratoryHome
from loratory.engine.training.batching.probe import losses_match
from loratory.engine.training.failure import is_out_of_memory

_TOKENS_AT_ONCE = 4096  # of rows that a GPU reads together
_LISTED = 10  # rows of a list
_MOST_LOSS = 1e4  # of a token; NaN and infinity count as this


class TokenLosses(FrozenModel):
    """A line of the file: losses of the trained tokens of a sequence, in nats."""

    name: str  # a hash of the tokens and labels
    losses: dict[Branch, tuple[float, ...]]


class LossFile:
    """Measures sequences, and adds each to a file that is named by the hashes of base and adapter."""

    def __init__(self, evaluation: Evaluation, spec: ModelSpec, home: LoratoryHome) -> None:
        plan = evaluation.order.plan
        folders = [spec.folder, *(weights.folder for weights in plan.trained_weights.values())]
        files = [file for folder in folders for file in sorted(folder.iterdir()) if file.is_file()]
        hashes = [sha256_once(file, home.cache) for file in files]
        identity = f"{plan.model.model_dump_json()} {spec.dtype} {hashes}"
        self._path = evaluation.order.folder / f"{hashlib.sha256(identity.encode()).hexdigest()[:32]}.losses"
        self._evaluation = evaluation
        self._branches: tuple[Branch, ...] = ("base", *plan.trained_weights)

    def sums(self, rows: Sequence[TokenizedRow], subject: str) -> dict[Branch, list[float]]:
        """Return the summed loss of each row by branch; what is in the file is not measured again."""
        evaluation, names = self._evaluation, list(map(_name_of, rows))
        sums = {line.name: _sums_of(line) for line in stream_models(self._path, TokenLosses)}
        missing = list({name: number for number, name in enumerate(names) if name not in sums}.values())
        done, lengths = len(rows) - len(missing), [rows[number].length for number in missing]
        # Batches gain nothing on a CPU.
        together = bool(missing) and evaluation.order.device.kind != "cpu" and evaluation.keeps_rows_apart
        for batch in batches_of_prompts(lengths, len(rows) if together else 1, _TOKENS_AT_ONCE):
            batch_rows = [rows[missing[index]] for index in batch]
            # Batches are the outer loop, since switching adapters is cheap.
            by_branch = {name: losses_of(evaluation.weights().branch(name), batch_rows) for name in self._branches}
            for at, row in enumerate(batch_rows):
                losses = {
                    name: [round(min(_MOST_LOSS, loss), 5) for loss in values[at]] for name, values in by_branch.items()
                }
                line = TokenLosses.model_validate({"name": _name_of(row), "losses": losses})
                append_model(self._path, line, "Losses could not be saved", "Free some space, then measure again.")
                sums[line.name] = _sums_of(line)
            done += len(batch)
            evaluation.report(f"Measuring {subject} {done:,} of {len(rows):,}.", done / len(rows))
        return {branch: [sums[name][branch] for name in names] for branch in self._branches}

    def lists(self, rows: Sequence[TokenizedRow], losses: Sequence[RowLoss]) -> dict[str, tuple[RowTokens, ...]]:
        """Return the rows that stand out, token by token; `losses` has the means of all."""
        worse = [loss for loss in losses if loss.tuned > loss.base + WORSE_BY]
        lists = {
            "likeliest": nsmallest(_LISTED, losses, lambda loss: loss.base),
            "most surprising": nsmallest(_LISTED, losses, lambda loss: -loss.base),
            "got worse": nsmallest(_LISTED, worse, lambda loss: loss.base - loss.tuned),
            "still failing": nsmallest(_LISTED, losses, lambda loss: -loss.tuned),
        }
        numbers = {loss.row for of_list in lists.values() for loss in of_list}
        sequences = [(row, _name_of(row)) for row in rows if row.row in numbers]
        names = {name for _, name in sequences}
        lines = {line.name: line.losses for line in stream_models(self._path, TokenLosses) if line.name in names}

        def with_tokens(loss: RowLoss) -> RowTokens:
            own = [(row, lines[name]) for row, name in sequences if row.row == loss.row]
            pieces = [piece for row, _ in own for piece in _pieces_of(row, self._evaluation.tokenizer)]
            tokens = {branch: [value for _, line in own for value in line[branch]] for branch in self._branches}
            return RowTokens.model_validate({**dict(loss), "pieces": pieces, "tokens": tokens})

        return {name: tuple(map(with_tokens, of_list)) for name, of_list in lists.items()}


def _name_of(row: TokenizedRow) -> str:
    images = "".join(f" {image.digest}" for image in row.images)
    return hashlib.sha256(f"{row.input_ids} {row.labels}{images}".encode()).hexdigest()[:32]


def _sums_of(line: TokenLosses) -> dict[Branch, float]:
    return {branch: sum(losses) for branch, losses in line.losses.items()}


def _pieces_of(row: TokenizedRow, tokenizer: DecodingTokenizer) -> list[str]:
    """Return the text of each trained token but the first of a sequence, which has no loss."""
    stream, controls = TextStream(tokenizer), control_token_ids(tokenizer)
    pieces = [tokenizer.decode([token]) if token in controls else stream.add(token) for token in row.input_ids]
    return [piece for piece, label in zip(pieces[1:], row.labels[1:], strict=True) if label >= 0]


def losses_of(weights: BranchWeights, rows: Sequence[TokenizedRow]) -> list[list[float]]:
    """Return the losses of each row's trained tokens, as one batch if memory suffices and the first row's stay the same."""
    alone = weights.token_losses(rows[0].input_ids, rows[0].labels, rows[0].images)
    if len(rows) == 1:
        return [alone]
    try:
        together = weights.batch_token_losses(rows)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        together = []
    if together and losses_match(sum(together[0]), sum(alone)):
        return together
    return [alone, *(weights.token_losses(row.input_ids, row.labels, row.images) for row in rows[1:])]
