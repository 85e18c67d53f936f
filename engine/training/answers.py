"""Answers to a few prompts at each evaluation, with the model as it is; training continues as if there had been none."""

import itertools
import statistics
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from transformers import Cache, DynamicCache

from loratory.engine.data.conversation import ImageRef, Message
from loratory.engine.data.passes.prepare import spread_evenly
from loratory.engine.data.render.images import image_text_of
from loratory.engine.data.render.template import ChatTokenizer, rendering_confined, stop_token_ids
from loratory.engine.data.render.tokenize import IGNORED_LABEL, TokenizedRow, prompt_ids
from loratory.engine.errors import ModelError, shorten
from loratory.engine.runs.history.events import AnswersData
from loratory.engine.training.batching.images import ImageInputs
from loratory.engine.training.ops.loss import causal_lm_of
from loratory.engine.training.reporting import RunEvents

_MOST_PROMPTS = 3
_LONGEST_TEXT = 2000  # characters of a prompt or an answer in an event
_ROWS_COMPARED = 500  # of the held-out ones, to find typical ones


def split_at_answer(row: TokenizedRow) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Return a sequence's prompt and its last trained tokens; None if it has no prompt, as in plain text."""
    start = end = max((index + 1 for index, label in enumerate(row.labels) if label != IGNORED_LABEL), default=0)
    while start > 0 and row.labels[start - 1] != IGNORED_LABEL:
        start -= 1
    return (tuple(row.input_ids[:start]), tuple(row.input_ids[start:end])) if start else None


def decode(ids: Sequence[int], tokenizer: ChatTokenizer) -> str:
    """Decode tokens without special tokens."""
    controls = set(tokenizer.all_special_ids)
    return tokenizer.decode([token for token in ids if token not in controls]).strip()


class Prompt(NamedTuple):
    """A prompt of a row, from 0, or one that a person typed; its tokens, and those of the answer in the data."""

    row: int
    ids: tuple[int, ...]
    reference: tuple[int, ...] = ()
    typed: str = ""
    images: tuple[ImageRef, ...] = ()

    def text(self, tokenizer: ChatTokenizer) -> str:
        """Return it decoded, with a number in place of the tokens of each image."""
        text, image_text = tokenizer.decode(self.ids), image_text_of(tokenizer)
        expansions = image_text.expansions(self.images) if image_text is not None and self.images else ()
        for number, expansion in enumerate(expansions, 1):
            text = text.replace(expansion, f"[image {number}] ", 1)
        return text


def prompts_of(rows: Iterable[TokenizedRow]) -> list[Prompt]:
    """Return the prompts of the rows that have one."""
    return [
        Prompt(row.row, *parts)._replace(images=row.images)
        for row in rows
        if (parts := (tuple(row.input_ids),) if row.prompt is not None else split_at_answer(row)) is not None
    ]


def choose_prompts(text: str, rows: Sequence[TokenizedRow], tokenizer: ChatTokenizer) -> list[Prompt]:
    """Return the prompts that `training.eval_prompts` names, else three different ones of the median length."""
    names = list(filter(None, map(str.strip, text.split("|"))))[:_MOST_PROMPTS]
    rows = [row for row in rows if str(row.row + 1) in names] if names else spread_evenly(rows, _ROWS_COMPARED)
    by_ids = {
        (prompt.ids, prompt.images): prompt for prompt in prompts_of(row for row in rows if row.desirable is not False)
    }
    prompts = list(by_ids.values())
    if missing := {part for part in names if part.isdecimal()} - {str(prompt.row + 1) for prompt in prompts}:
        raise ValueError(f"row {', '.join(sorted(missing))} is not held out, or has no prompt")
    with rendering_confined(len(text)):
        for part in (part for part in names if not part.isdecimal()):
            prompts.append(Prompt(0, tuple(prompt_ids((Message("user", part),), tokenizer)), typed=part))
    lengths = {prompt: len(prompt.ids) + len(prompt.reference) for prompt in prompts}
    middle = statistics.median(lengths.values()) if prompts else 0
    return sorted(prompts, key=lambda prompt: abs(lengths[prompt] - middle))[:_MOST_PROMPTS]


@dataclass(eq=False)
class PromptAnswers:
    """Answers the prompts that `choose` returns in every evaluation, and reports it; after an error, no more."""

    events: RunEvents
    tokenizer: Any
    choose: Callable[[], Sequence[Prompt]]
    max_new_tokens: int  # 0 answers none
    images: ImageInputs | None = None

    def answer(self, model: Any, step: int) -> None:
        """Answer all prompts, as one batch, with a model that is ready for it."""
        began = time.perf_counter()
        if not self.max_new_tokens:
            return
        try:
            prompts = self.choose()
            answers = self._generate(model, prompts) if prompts else []
        except Exception as error:  # of any model; a run is worth more than its answers
            traceback.print_exc()
            self.max_new_tokens = 0
            self.events.warn(f"From step {step:,} on, prompts are not answered: {shorten(str(error), 150)}.")
            return
        if answers:
            data = AnswersData(
                step=step,
                names=tuple(prompt.typed or f"Row {prompt.row + 1:,}" for prompt in prompts),
                prompts=tuple(prompt.text(self.tokenizer)[-_LONGEST_TEXT:] for prompt in prompts),
                references=tuple(decode(prompt.reference, self.tokenizer)[:_LONGEST_TEXT] for prompt in prompts),
                answers=tuple(decode(tokens, self.tokenizer)[:_LONGEST_TEXT] for tokens in answers),
                seconds=time.perf_counter() - began,
            )
            self.events.emit(data)

    def _generate(self, model: Any, prompts: Sequence[Prompt]) -> list[list[int]]:
        causal_lm, cache = causal_lm_of(model), virtual_token_cache(model, len(prompts))
        skipped = cache.get_seq_length() if cache is not None else 0  # by `generate`: it is in the cache already
        longest, pad = max(len(prompt.ids) for prompt in prompts), self.tokenizer.pad_token_id
        padding = [longest - len(prompt.ids) for prompt in prompts]
        rows = [[pad] * (skipped + n) + list(prompt.ids) for n, prompt in zip(padding, prompts, strict=True)]
        mask = [[1] * skipped + [0] * n + [1] * (longest - n) for n in padding]
        device, eos = causal_lm.get_input_embeddings().weight.device, causal_lm.generation_config.eos_token_id
        ends = {*stop_token_ids(self.tokenizer), *(eos if isinstance(eos, list) else [eos])} - {None}
        more = {} if cache is None else {"cache": cache}
        if self.images is not None:
            tensors = self.images.tensors([prompt.images for prompt in prompts], torch.tensor(rows))
            more |= {name: tensor.to(device) for name, tensor in tensors.items()}
        # What is not set here comes from the model's own configuration, which may sample.
        output = causal_lm.generate(
            input_ids=torch.tensor(rows, device=device), attention_mask=torch.tensor(mask, device=device),
            max_new_tokens=self.max_new_tokens, do_sample=False, num_beams=1, repetition_penalty=1.0, use_cache=True,
            eos_token_id=sorted(ends), pad_token_id=pad, disable_compile=True, **more,
        )  # fmt: skip
        answers = output[:, skipped + longest :].tolist()
        return [list(itertools.takewhile(lambda token: token not in ends, answer)) for answer in answers]


def virtual_token_cache(model: Any, rows: int = 1) -> Cache | None:
    """Return a cache with the virtual tokens of a PEFT model, for a batch of rows; None if it has none.

    PEFT's `generate` does not know that transformers calls the cache `cache`, and would leave them out.

    Raises:
        ModelError: If the model keeps no cache.
    """
    config = getattr(model, "active_peft_config", None)
    if config is None or not config.is_prompt_learning or model._adapters_disabled:
        return None
    prompt = model.get_prompt(batch_size=rows, max_cache_len=-1)
    if isinstance(prompt, Cache):  # learned keys and values
        return prompt
    causal_lm = model.get_base_model()  # which reads learned embeddings, (rows, tokens, hidden size), first
    if not causal_lm._supports_default_dynamic_cache():
        what = f"{type(causal_lm).__name__} keeps no keys and values, which virtual tokens need."
        raise ModelError(what, "Choose an adapter without virtual tokens.")
    cache = DynamicCache(config=causal_lm.config.get_text_config(decoder=True))
    causal_lm(inputs_embeds=prompt.to(causal_lm.dtype), cache=cache, use_cache=True)
    return cache
