"""Tasks of lm-eval, the Language Model Evaluation Harness, on the weights of a run."""

import os
from collections.abc import Sequence
from typing import Any

from loratory.engine.chat.contract import Branch
from loratory.engine.chat.worker.weights import Weights
from loratory.engine.errors import DatasetError, ModelError, shorten


def run_tasks(
    tasks: Sequence[str], weights: Weights, tokenizer: Any, limit: int | None
) -> dict[Branch, dict[str, float]]:
    """Return the figures of every branch by task and metric, with lm-eval's own prompts and no code of the Hub."""
    os.environ["DISABLE_MULTIPROC"] = "1"  # it would fork this process, whose threads may hold locks
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    figures: dict[Branch, dict[str, float]] = {}
    for branch in weights.branch_names:
        own = weights.branch(branch)
        if own.virtual_tokens:
            raise ModelError("lm-eval cannot read adapters with virtual tokens.", "Leave out --lm-eval.")
        own.holder.switch_to(own.adapter)
        model = HFLM(own.holder.model, tokenizer=tokenizer, batch_size=8, trust_remote_code=False)
        try:
            results = simple_evaluate(model, tasks=[*tasks], limit=limit, log_samples=False, bootstrap_iters=1000)
        except Exception as error:
            what = f"lm-eval failed ({type(error).__name__}: {shorten(str(error), 200)})."
            raise DatasetError(what, "Check the names by `lm-eval ls tasks`; most tasks need the Hub.") from error
        figures[branch] = {
            f"{task} {metric.removesuffix(',none')}": float(value)
            for task, metrics in results["results"].items()
            for metric, value in metrics.items()
            if isinstance(value, int | float) and metric != "sample_len"
        }
    return figures
