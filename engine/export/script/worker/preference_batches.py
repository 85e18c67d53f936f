"""The part of a script that makes batches of pairs, and of answers with a label, as TRL's trainers take them."""

from typing import Any

import torch

from engine.export.script.facts import facts
from engine.export.script.worker.encoding import MAX_LENGTH


def padded(sequences: list[list[int]], filler: int = 0) -> Any:
    """Return sequences as a tensor, filled up at the end; what is filled in is neither seen nor trained."""
    longest = max(map(len, sequences))
    return torch.tensor([sequence + [filler] * (longest - len(sequence)) for sequence in sequences])


def batch_of(ids: list[list[int]], labels: list[list[int]]) -> dict[str, Any]:
    """Return sequences with what is trained of them; nothing comes before a first token, so it is not."""
    trained = [[0, *(int(label != -100) for label in one[1:])] for one in labels]
    return {
        "input_ids": padded(ids),
        "attention_mask": padded([[1] * len(one) for one in ids]),
        "completion_mask": padded(trained),
    }


def collate_preferences(rows: list[Any]) -> dict[str, Any]:
    """Return a batch as TRL's own collator makes it."""
    ids, labels = [row["input_ids"] for row in rows], [row["labels"] for row in rows]
    if facts.learns_pairs:
        rejected_ids, rejected_labels = [row["rejected_ids"] for row in rows], [row["rejected_labels"] for row in rows]
    if facts.objective.trains_prompts:
        return {
            "chosen_input_ids": padded(ids),
            "chosen_attention_mask": padded([[1] * len(one) for one in ids]),
            "chosen_labels": padded(labels, -100),
            "rejected_input_ids": padded(rejected_ids),
            "rejected_attention_mask": padded([[1] * len(one) for one in rejected_ids]),
            "rejected_labels": padded(rejected_labels, -100),
        }
    if facts.learns_pairs:
        batch = batch_of(ids + rejected_ids, labels + rejected_labels)
        if facts.precomputes_reference:
            known = [name for name in ("ref_chosen_logps", "ref_rejected_logps") if name in rows[0]]
            batch |= {name: torch.tensor([row[name] for row in rows]) for name in known}
        return batch
    batch = batch_of(ids, labels)
    if facts.estimates_kl:
        mismatched = batch_of([row["kl_ids"] for row in rows], [row["kl_labels"] for row in rows])
        batch |= {f"KL_{name}": values for name, values in mismatched.items()}
    return {**batch, "label": torch.tensor([row["desirable"] for row in rows])}


def rows_of(batch: Any) -> int:
    """Return the rows of a batch, twice of pairs."""
    return len(batch["chosen_labels"] if facts.objective.trains_prompts else batch["input_ids"])


def chosen_tokens(batch: Any) -> int:
    """Return the tokens over which the likelihood of the chosen answers is averaged."""
    if facts.objective.trains_prompts:
        return int(batch["chosen_attention_mask"][:, 1:].sum())
    return int(batch["completion_mask"][: len(batch["input_ids"]) // 2].sum())


def with_mismatched(rows: list[Any]) -> list[Any]:
    """Return the rows of a step, each with its prompt before the answer of the row before it, for KTO's estimate of the KL."""
    found = []
    for row, other in zip(rows, [rows[-1], *rows[:-1]], strict=True):
        start, answer = (
            next(place for place, label in enumerate(one["labels"]) if label != -100) for one in (row, other)
        )
        ids = row["input_ids"][:start] + other["input_ids"][answer:]
        labels = [-100] * start + other["labels"][answer:]
        found.append({**row, "kl_ids": ids[:MAX_LENGTH], "kl_labels": labels[:MAX_LENGTH]})
    return found
