"""The model card of an export: what it is, how it was trained, how good it is, and how to load it."""

import math

import yaml

from engine.config.run import RunConfig
from engine.evaluation.contract import EvaluationResult
from engine.export.card_facts import CardFacts, data_names, hub_datasets, loss_curve
from engine.export.kinds import KINDS
from engine.runs.history.run_history import RunHistory

_LONGEST_LOSS = 700.0  # beyond it e to the power overflows


def write_card(facts: CardFacts) -> str:
    """The README, with the front matter that the Hub reads. Names no path of this machine."""
    kind = KINDS[facts.kind]
    code = kind.code.format(folder=facts.folder, base=facts.base)
    parts = [
        f"---\n{yaml.safe_dump(_front_matter(facts), sort_keys=False, allow_unicode=True)}---\n",
        f"# {_cell(facts.title)}\n",
        f"This is {kind.card_noun} `{facts.base}`, trained with {facts.method or 'PEFT'} in Loratory.\n",
        f"## Use\n\n```python\n{code}```\n",
        "The chat template that it was trained with is part of the tokenizer.\n",
        *(_training(facts.config, facts) if facts.config is not None else ()),
        *(_curve(facts.history, facts.last_step) if facts.history is not None else ()),
        *(_evaluation(facts.evaluation) if facts.evaluation is not None else ()),
        _license(facts),
    ]
    return "\n".join(parts)


def _front_matter(facts: CardFacts) -> dict[str, object]:
    matter: dict[str, object] = {}
    if facts.base_is_on_hub:
        matter["base_model"] = facts.base
        matter["base_model_relation"] = KINDS[facts.kind].relation
    if facts.license is not None:
        matter["license"] = facts.license
    datasets = hub_datasets(facts.config.dataset) if facts.config is not None else ()
    if datasets:
        matter["datasets"] = list(datasets)
    matter["library_name"] = KINDS[facts.kind].library
    matter["pipeline_tag"] = "text-generation"
    adapter = facts.config.adapter if facts.config is not None else None
    method = [adapter.method] if adapter is not None and not adapter.traits.trains_all else []
    matter["tags"] = ["loratory", *method]
    return matter


def _training(config: RunConfig, facts: CardFacts) -> tuple[str, ...]:
    training = config.training
    quantization = config.model.quantization
    length = f"{training.num_train_epochs:g} epochs" if training.max_steps < 0 else f"{training.max_steps:,} steps"
    rows = [
        ("Data", ", ".join(data_names(config.dataset))),
        *_data_rows(facts),
        ("Learned from", config.dataset.train_on.replace("_", " ")),
        ("Method", facts.method),
        *config.adapter.traits.card_rows(config.adapter),
        *([("Base weights", quantization)] if quantization != "none" else []),
        ("Length", length),
        (
            "Learning rate",
            f"{training.learning_rate:g}, {training.lr_scheduler_type}, warm-up {training.warmup_steps:g}",
        ),
        ("Optimizer", f"{training.optim}, weight decay {training.weight_decay:g}"),
        ("Batch", f"{training.per_device_train_batch_size * training.gradient_accumulation_steps}"),
        ("Longest row", f"{training.max_length:,} tokens"),
        ("Seed", f"{training.seed}"),
        *_result_rows(facts.history, facts.last_step),
    ]
    versions = facts.provenance.libraries if facts.provenance is not None else {}
    if versions:
        rows.append(("Versions", ", ".join(f"{name} {version}" for name, version in versions.items())))
    table = "\n".join(f"| {name} | {_cell(value)} |" for name, value in rows)
    return (f"## Training\n\n| | |\n|---|---|\n{table}\n",)


def _data_rows(facts: CardFacts) -> list[tuple[str, str]]:
    report = facts.history.data_report if facts.history is not None else None
    rows = []
    if report is not None:
        rows.append(("Rows", f"{report.train_rows:,} learned, {report.eval_rows:,} held out"))
    fingerprint = facts.provenance.dataset_fingerprint if facts.provenance is not None else None
    if fingerprint:
        rows.append(("Data's fingerprint", f"`{fingerprint[:16]}`"))
    return rows


def _result_rows(history: RunHistory | None, last_step: int | None) -> list[tuple[str, str]]:
    if history is None:
        return []
    steps = last_step or history.last_step
    rows = [("Steps", f"{steps:,}")] if steps else []
    measured = [point for point in history.tuned_evals if last_step is None or point.step <= last_step]
    if measured:
        last = measured[-1].eval_loss
        before = f", {history.base_eval.eval_loss:.4f} before" if history.base_eval is not None else ""
        perplexity = math.exp(min(last, _LONGEST_LOSS))
        rows.append(("Held-out loss", f"{last:.4f} (perplexity {perplexity:.2f}){before}"))
    return rows


def _curve(history: RunHistory, last_step: int | None) -> tuple[str, ...]:
    points = loss_curve(history, last_step)
    if len(points) < 2:
        return ()
    rows = "\n".join(f"| {point.step:,} | {_loss(point.loss)} | {_loss(point.held_out_loss)} |" for point in points)
    table = f"| Step | Loss | Held-out loss |\n|---:|---:|---:|\n{rows}\n"
    return (f"### Loss\n\nThe loss is the mean since the row before.\n\n{table}",)


def _evaluation(result: EvaluationResult) -> tuple[str, ...]:
    """Losses and, where answers were written, their scores; base and tuned on the same rows."""
    branches = [branch for branch in ("base", "tuned") if branch in result.losses]
    if not branches:
        return ()
    scored = any(branch in result.scores for branch in branches)
    header = "| | Loss | Perplexity |" + (" Exact | ROUGE-L | chrF |" if scored else "")
    lines = [header, "|---|---:|---:|" + ("---:|---:|---:|" if scored else "")]
    for branch in branches:
        loss = result.losses[branch]
        line = f"| {'Base' if branch == 'base' else 'This'} | {_loss(loss.loss)} | {loss.perplexity:.2f} |"
        scores = result.scores.get(branch)
        if scores is not None:
            line += f" {scores.exact:.0%} | {scores.rouge_l:.3f} | {scores.chrf:.3f} |"
        elif scored:
            line += " | | |"
        lines.append(line)
    answered = max((scores.rows for scores in result.scores.values()), default=0)
    on = f"Measured on {result.rows:,} held-out rows" + (f", answers on {answered:,} of them." if answered else ".")
    return (f"## Evaluation\n\n{on}\n\n" + "\n".join(lines) + "\n",)


def _license(facts: CardFacts) -> str:
    base = f"[{facts.base}](https://huggingface.co/{facts.base})" if facts.base_is_on_hub else f"`{facts.base}`"
    known = f"is licensed under `{facts.license}`" if facts.license else "has a licence of its own"
    return f"## Licence\n\nThe base model {base} {known}; its terms hold for what is made from it.\n"


def _loss(value: float) -> str:
    return f"{value:.4f}" if math.isfinite(value) else ""


def _cell(text: str) -> str:
    """Text that stays within its cell of a table."""
    return " ".join(text.replace("|", "\\|").split())
