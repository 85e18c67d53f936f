"""The part of a script that prepares the rows for training, and checks that they are the run's."""

import argparse
import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np

from engine.data.passes.split import draw_held_out
from engine.export.script.facts import facts
from engine.export.script.worker.encoding import MODEL, RefusedRowError, encode_row
from engine.export.script.worker.preferences import encode_preference, preference, preference_digest, prompt_digest
from engine.export.script.worker.rows import LEFT_OUT, conversation, digest, read_rows

DATA = facts.data_location
SEED = facts.config.training.seed
EVAL_FRACTION = facts.config.dataset.eval_fraction  # of the rows are held out
MAX_SAMPLES = facts.config.dataset.max_samples or 0
ROWS = facts.data.fingerprint  # sha256 of the content of all rows
RUN_ROWS = facts.run_rows.fingerprint  # sha256 of the rows that the run used
RUN_SEQUENCES = facts.run_rows.sequences  # the run's, to train on and held out
RUN_TOKENS = facts.run_rows.tokens  # of the former, trained and masked


def fingerprint(rows: Iterable[Any]) -> str:
    """Return the sha256 of the content of all rows, in order."""
    digests = map(preference_digest if facts.learns_preferences else digest, rows)
    return hashlib.sha256(b"".join(one.to_bytes(8, "little") for one in digests)).hexdigest()


def load_rows(where: Any) -> list[Any]:
    """Return the rows in order; exit if DATA is not what this script was written for."""
    if facts.data.left_out and where != DATA:
        LEFT_OUT.clear()  # they number rows of DATA
    try:
        values = read_rows(where)
        if facts.data.left_out:
            values = (value for number, value in enumerate(values) if number not in LEFT_OUT)
        if facts.learns_preferences:
            rows: list[Any] = [preference(value) for value in values]
        elif not facts.data.has_turns:
            rows = [value[facts.data.columns["text"]] for value in values]
        else:
            rows = [conversation(value) for value in values]
        actual = fingerprint(rows)
    except Exception as error:  # a column is missing, a line is cut off …
        raise SystemExit(
            f"The rows of {where} cannot be read ({type(error).__name__}: {error}). "
            "They must have the format of those that this script was written for."
        ) from error
    if actual != ROWS and where == DATA:
        raise SystemExit(
            f"The {len(rows):,} rows of {where} are not those that this script was written for. "
            "Restore them, or choose other rows with --data."
        )
    if actual != ROWS:
        print(f"The {len(rows):,} rows of {where} differ from those that this script was written for.")
    return rows


def held_out(rows: list[Any]) -> Any:
    """Return for each row whether it is held out."""
    digests = map(prompt_digest if facts.learns_preferences else digest, rows)
    mask = draw_held_out(np.array(list(digests), dtype=np.uint64), EVAL_FRACTION, SEED)
    if not mask.any():
        raise SystemExit(
            "All remaining rows have the same content, so none can be held out. "
            "Write this script again with other rows or with eval_fraction 0."
        )
    return mask


def require_rows_of_run(encoded_rows: list[Any], train: list[Any], evaluation: list[Any]) -> None:
    """Exit if the rows do not give the sequences and tokens of the run."""
    labels = [row["labels"] for row in train]
    if facts.learns_pairs:
        labels += [row["rejected_labels"] for row in train]
    trained_tokens = sum(label != -100 for one in labels for label in one)
    tokens = (trained_tokens, sum(map(len, labels)) - trained_tokens)
    sequences = (len(train), len(evaluation))
    if (sequences, tokens) != (RUN_SEQUENCES, RUN_TOKENS) or (
        facts.run_rows.fingerprint is not None and fingerprint(row for row, _ in encoded_rows) != RUN_ROWS
    ):
        raise SystemExit(
            f"The rows became {sequences} sequences of {tokens} tokens; in the run they were {RUN_SEQUENCES} of {RUN_TOKENS}. "
            "Use the data of the run and the versions that are named at the head of this file."
        )


def prepare(tokenizer: Any, options: argparse.Namespace) -> tuple[list[Any], list[Any]]:
    """Return the sequences to train on, and those that are held out."""
    if not facts.data.has_turns:
        encoded_rows = [(row, encode_row(row, tokenizer)) for row in load_rows(options.data)]
    else:
        encoded_rows, reasons = [], []
        for row in load_rows(options.data):
            try:
                encoded_rows.append(
                    (row, (encode_preference if facts.learns_preferences else encode_row)(row, tokenizer))
                )
            except RefusedRowError as reason:
                reasons.append(reason)
        if reasons:
            print(f"{len(reasons)} rows are left out, the first because {reasons[0]}")
    # Sequences without trained tokens within MAX_LENGTH are dropped.
    trained_rows = [
        (row, [one for one in sequences if any(label != -100 for label in one["labels"])])
        for row, sequences in encoded_rows
    ]
    encoded_rows = [(row, sequences) for row, sequences in trained_rows if sequences]
    if not encoded_rows:
        raise SystemExit("No row has tokens to train on. Raise MAX_LENGTH, or choose other rows with --data.")
    sample = encoded_rows
    if facts.config.dataset.max_samples and len(encoded_rows) > MAX_SAMPLES:
        numbers = np.random.default_rng([SEED, 0]).choice(len(encoded_rows), size=MAX_SAMPLES, replace=False)
        sample = [encoded_rows[row] for row in np.sort(numbers)]
    if facts.measures:
        mask = held_out([row for row, _ in sample])
        train = [one for (_, sequences), out in zip(sample, mask, strict=True) if not out for one in sequences]
        evaluation = [one for (_, sequences), out in zip(sample, mask, strict=True) if out for one in sequences]
    else:
        train, evaluation = [one for _, sequences in sample for one in sequences], []
    if facts.run_rows.sequences is not None and (options.model, options.data) == (MODEL, DATA):
        require_rows_of_run(encoded_rows, train, evaluation)
    return train, evaluation
