"""The part of a script that batches pairs, or answers with a label, for TRL's trainers."""

from typing import Any

import torch

from engine.export.script.facts import facts
from engine.export.script.worker.encoding import MAX_LENGTH


def pad_sequences(sequences: list[list[int]], filler: int = 0) -> Any:
    """Return sequences as a tensor, padded on the right."""
    longest = max(map(len, sequences))
    return torch.tensor([sequence + [filler] * (longest - len(sequence)) for sequence in sequences])


def batch_of(ids: list[list[int]], labels: list[list[int]]) -> dict[str, Any]:
    """Return sequences with a mask of trained tokens; the first token has no context, so it is masked."""
    masks = [[0, *(int(label != -100) for label in one[1:])] for one in labels]
    return {
        "input_ids": pad_sequences(ids),
        "attention_mask": pad_sequences([[1] * len(one) for one in ids]),
        "completion_mask": pad_sequences(masks),
    }


def collate_preferences(rows: list[Any]) -> dict[str, Any]:
    """Return a batch as TRL's own collator does."""
    ids, labels = [row["input_ids"] for row in rows], [row["labels"] for row in rows]
    if facts.learns_pairs:
        rejected_ids, rejected_labels = [row["rejected_ids"] for row in rows], [row["rejected_labels"] for row in rows]
    if facts.objective.trains_prompts:
        return {
            "chosen_input_ids": pad_sequences(ids),
            "chosen_attention_mask": pad_sequences([[1] * len(one) for one in ids]),
            "chosen_labels": pad_sequences(labels, -100),
            "rejected_input_ids": pad_sequences(rejected_ids),
            "rejected_attention_mask": pad_sequences([[1] * len(one) for one in rejected_ids]),
            "rejected_labels": pad_sequences(rejected_labels, -100),
        }
    if facts.learns_pairs:
        batch = batch_of(ids + rejected_ids, labels + rejected_labels)
        if facts.precomputes_reference:
            names = [name for name in ("ref_chosen_logps", "ref_rejected_logps") if name in rows[0]]
            batch |= {name: torch.tensor([row[name] for row in rows]) for name in names}
        return batch
    batch = batch_of(ids, labels)
    if facts.estimates_kl:
        kl_batch = batch_of([row["kl_ids"] for row in rows], [row["kl_labels"] for row in rows])
        batch |= {f"KL_{name}": values for name, values in kl_batch.items()}
    return {**batch, "label": torch.tensor([row["desirable"] for row in rows])}


def rows_of(batch: Any) -> int:
    """Return the number of sequences of a batch."""
    return len(batch["chosen_labels"] if facts.objective.trains_prompts else batch["input_ids"])


def chosen_tokens(batch: Any) -> int:
    """Return the number of tokens over which the likelihood of the chosen answers is averaged."""
    if facts.objective.trains_prompts:
        return int(batch["chosen_attention_mask"][:, 1:].sum())
    return int(batch["completion_mask"][: len(batch["input_ids"]) // 2].sum())


def with_mismatched(rows: list[Any]) -> list[Any]:
    """Return the rows of a step, each with its prompt and the answer of the row before, for KTO's estimate of the KL."""
    result = []
    for row, other in zip(rows, [rows[-1], *rows[:-1]], strict=True):
        start, answer = (
            next(place for place, label in enumerate(one["labels"]) if label != -100) for one in (row, other)
        )
        ids = row["input_ids"][:start] + other["input_ids"][answer:]
        labels = [-100] * start + other["labels"][answer:]
        result.append({**row, "kl_ids": ids[:MAX_LENGTH], "kl_labels": labels[:MAX_LENGTH]})
    return result
