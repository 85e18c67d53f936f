"""Greedy answers to many prompts, guessed in one batch: a small part of the time that they take one after the other."""

from collections.abc import Sequence

import torch
from transformers import GenerationConfig

from engine.chat.contract import PromptView
from engine.chat.worker.weights import BranchWeights
from engine.training.failure import is_out_of_memory


def draft_answers(
    branch: BranchWeights, prompts: Sequence[PromptView], end_ids: frozenset[int], most_tokens: int
) -> list[tuple[int, ...]]:
    """Guess what a branch answers. A guess may be wrong: padding is seen by some architectures, and rounding turns ties.

    Args:
        branch: Who is asked.
        prompts: With the ids that it reads.
        end_ids: Tokens that end an answer; an answer keeps the one that ends it.
        most_tokens: Of each answer.

    Returns:
        One for each prompt, of at least one token; no token at all where memory does not hold the batch, and with prefix
        tuning, whose keys and values do not stand in the prompts that transformers' `generate` counts.
    """
    if branch.virtual_tokens:
        return [()] * len(prompts)
    branch.holder.switch_to(branch.adapter)
    ids, mask = _padded_left([prompt.ids for prompt in prompts], branch.holder.model.device)
    # Whatever a model's own generation settings say, this is about the token that comes first.
    settings = GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=most_tokens,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        eos_token_id=sorted(end_ids) or None,
        pad_token_id=0,
    )
    try:
        with torch.inference_mode():
            written = branch.holder.model.generate(input_ids=ids, attention_mask=mask, generation_config=settings)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return [()] * len(prompts)
    return [_until_end(row, end_ids) for row in written[:, ids.shape[1] :].tolist()]


def _padded_left(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and attention mask, both (rows, longest row)."""
    width = max(len(row) for row in rows)
    ids = [[0] * (width - len(row)) + list(row) for row in rows]
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def _until_end(tokens: Sequence[int], end_ids: frozenset[int]) -> tuple[int, ...]:
    length = next((place for place, token in enumerate(tokens, start=1) if token in end_ids), len(tokens))
    return tuple(tokens[:length])
