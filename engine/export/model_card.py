"""The README of what is taken away: what it is, what it was trained on and how, and how to load it."""

import math
from dataclasses import dataclass
from pathlib import Path

import yaml

from engine.chat.target import LoadPlan
from engine.config.export import ExportKind
from engine.config.run import RunConfig
from engine.models.catalog import find_in_catalog
from engine.runs.history import RunHistory, read_history
from engine.runs.provenance import Provenance, read_provenance
from engine.runs.run import RunFolder

_ADAPTER_CODE = """\
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{folder}")
model = AutoModelForCausalLM.from_pretrained("{base}")
model = PeftModel.from_pretrained(model, "{folder}")
"""
_MODEL_CODE = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{folder}")
model = AutoModelForCausalLM.from_pretrained("{folder}")
"""
_USE_CODE = """
prompt = tokenizer.apply_chat_template(
    [{"role": "user", "content": "…"}], add_generation_prompt=True, return_tensors="pt", return_dict=True
)
answer = model.generate(**prompt, max_new_tokens=200)
print(tokenizer.decode(answer[0, prompt["input_ids"].shape[1]:], skip_special_tokens=True))
"""


@dataclass(frozen=True)
class CardFacts:
    """What a card tells."""

    kind: ExportKind
    folder: str  # name of the exported folder
    title: str
    base: str  # Hub id or name of the base model
    base_is_on_hub: bool
    method: str
    config: RunConfig | None = None  # None for an adapter that comes from elsewhere
    history: RunHistory | None = None
    provenance: Provenance | None = None


def gather_facts(
    plan: LoadPlan, kind: ExportKind, folder: str, base: str, *, base_is_on_hub: bool, run: Path | None
) -> CardFacts:
    """Collect what is known about a result; a run knows everything, a bare adapter little."""
    assert plan.tuned is not None
    of_run = RunFolder(run) if run is not None else None
    return CardFacts(
        kind=kind,
        folder=folder,
        title=plan.tuned.name,
        base=base,
        base_is_on_hub=base_is_on_hub,
        method=plan.method_name,
        config=of_run.read_config() if of_run is not None else None,
        history=read_history(of_run.events) if of_run is not None else None,
        provenance=read_provenance(of_run) if of_run is not None else None,
    )


def write_card(facts: CardFacts) -> str:
    """The README, with the front matter that the Hub reads. Names no path of this machine."""
    code = (_ADAPTER_CODE if facts.kind == "adapter" else _MODEL_CODE).format(folder=facts.folder, base=facts.base)
    what = "an adapter for" if facts.kind == "adapter" else "a complete model, made from an adapter and"
    parts = [
        f"---\n{yaml.safe_dump(_front_matter(facts), sort_keys=False, allow_unicode=True)}---\n",
        f"# {facts.title}\n",
        f"This is {what} `{facts.base}`, trained with {facts.method or 'PEFT'} in Loratory.\n",
        *(_training(facts.config, facts) if facts.config is not None else ()),
        f"## Use\n\n```python\n{code}{_USE_CODE}```\n",
        "The chat template that it was trained with is part of the tokenizer.\n",
    ]
    return "\n".join(parts)


def _front_matter(facts: CardFacts) -> dict[str, object]:
    entry = find_in_catalog(facts.base)
    matter: dict[str, object] = {}
    if facts.base_is_on_hub:
        matter["base_model"] = facts.base
        matter["base_model_relation"] = "adapter" if facts.kind == "adapter" else "finetune"
    if entry is not None:
        matter["license"] = entry.license
    matter["library_name"] = "peft" if facts.kind == "adapter" else "transformers"
    matter["pipeline_tag"] = "text-generation"
    matter["tags"] = ["loratory", *([facts.config.adapter.method] if facts.config else [])]
    return matter


def _training(config: RunConfig, facts: CardFacts) -> tuple[str, ...]:
    rows = [
        ("Data", _data_name(config.dataset.source)),
        ("Method", facts.method),
        *_method_rows(config),
        ("Learning rate", f"{config.training.learning_rate:g}, {config.training.lr_scheduler_type}"),
        ("Batch", f"{config.training.per_device_train_batch_size * config.training.gradient_accumulation_steps}"),
        ("Longest row", f"{config.training.max_length:,} tokens"),
        ("Seed", f"{config.training.seed}"),
        *_result_rows(facts.history),
    ]
    versions = facts.provenance.libraries if facts.provenance is not None else {}
    if versions:
        rows.append(("Versions", ", ".join(f"{name} {version}" for name, version in versions.items())))
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    return (f"## Training\n\n| | |\n|---|---|\n{table}\n",)


def _method_rows(config: RunConfig) -> list[tuple[str, str]]:
    adapter = config.adapter
    if adapter.method == "lora":
        targets = (
            adapter.target_modules if isinstance(adapter.target_modules, str) else ", ".join(adapter.target_modules)
        )
        return [
            ("Rank, alpha, dropout", f"{adapter.r}, {adapter.lora_alpha}, {adapter.lora_dropout:g}"),
            ("Layers", targets),
        ]
    if adapter.method == "prefix_tuning":
        return [("Virtual tokens", f"{adapter.num_virtual_tokens}")]
    return []


def _result_rows(history: RunHistory | None) -> list[tuple[str, str]]:
    if history is None:
        return []
    rows = [("Steps", f"{history.last_step:,}")] if history.last_step else []
    if history.tuned_evals:
        last = history.tuned_evals[-1].eval_loss
        before = f", {history.base_eval.eval_loss:.4f} before" if history.base_eval is not None else ""
        rows.append(("Held-out loss", f"{last:.4f} (perplexity {math.exp(min(last, 700.0)):.2f}){before}"))
    return rows


def _data_name(source: str) -> str:
    """A Hub id or a sample as it is; of a path only the last part, which tells of nobody's folders."""
    looks_like_path = source.startswith(("/", "~", ".", "\\")) or ":\\" in source or Path(source).exists()
    return Path(source).name if looks_like_path else source
