"""Write the exact form of a script: `train.py`, and `rows.parquet` with the run's tokenized rows in their batches."""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from pyarrow.parquet import ParquetWriter
from transformers import AutoConfig, AutoModelForCausalLM

from loratory.engine.chat.contract import JobProgress
from loratory.engine.config.objectives import objective_of
from loratory.engine.data.hub import reads_from_hub
from loratory.engine.data.passes.prepare import PreparedDataset, prepare_dataset
from loratory.engine.data.render.tokenize import TokenizedRow
from loratory.engine.data.step_plan import EpochPlanner, PlanSettings
from loratory.engine.errors import DatasetError, RunError, explain_os_errors
from loratory.engine.export.contract import ExportResult
from loratory.engine.export.folder import list_files
from loratory.engine.export.job import ScriptOrder
from loratory.engine.export.script.facts import TRL_DEFAULTS, ScriptFacts, without_defaults
from loratory.engine.export.script.model_facts import own_template
from loratory.engine.export.script.write import differences_of, exact_head, gather_script_facts, render
from loratory.engine.files import fsync_tree
from loratory.engine.inspector.worker.load_tokenizer import load_tokenizer
from loratory.engine.models.prepared import OnModelProgress
from loratory.engine.models.source import ModelSource, resolve_model
from loratory.engine.paths import LoratoryHome
from loratory.engine.processes.messages import CancelledRequestError, JsonObject, Request
from loratory.engine.processes.spawn import Access, give_up_access
from loratory.engine.runs.provenance import read_provenance
from loratory.engine.runs.run import RunFolder
from loratory.engine.training.batching.steps import choose_rows
from loratory.engine.training.methods.registry import method_trainer

_ROWS_AT_ONCE = 1_000
_TOKENS = pa.list_(pa.int32())
_FIELDS: dict[str, pa.DataType] = {"input_ids": _TOKENS, "labels": _TOKENS}
_PAIR_FIELDS = {"rejected_ids": _TOKENS, "rejected_labels": _TOKENS}


def run_script(home: LoratoryHome, params: JsonObject, request: Request) -> JsonObject:
    """Fill the folder of an order of `loratory.engine.export.job`."""
    order = ScriptOrder.model_validate(params)

    def report(message: str) -> None:
        if request.is_cancelled():
            raise CancelledRequestError()
        request.progress(JobProgress(phase="writing", message=message).model_dump(mode="json"))

    fetched: OnModelProgress = lambda progress: report(progress.message)  # noqa: E731
    source = resolve_model(order.config.model, home, fetched)
    if not reads_from_hub(order.config.dataset):
        give_up_access(Access.HUB)
    with explain_os_errors("The script cannot be written", "Free some space."):
        write_exact_script(order, source, home, report)
        fsync_tree(order.folder)
    notes = ("Run train.py where its packages are installed; it logs its losses into log_history.json in its output.",)
    return ExportResult(path=order.folder, files=list_files(order.folder), notes=notes).model_dump(mode="json")


def write_exact_script(
    order: ScriptOrder, source: ModelSource, home: LoratoryHome, report: Callable[[str], None]
) -> None:
    """Write the exact form of a run, or of a configuration as it would run on this machine.

    Raises:
        DatasetError: If the data cannot be read, or is not what the run was trained on.
        RunError: If TRL's trainer of the objective cannot train this adapter, or the run sampled what it learned from.
    """
    config, folder = order.config, order.folder
    if objective_of(config).samples_answers:
        what = f"{objective_of(config).label} has no exact script: the answers that it learns from are sampled."
        raise RunError(what, "Write a short script, without --exact.")
    run = RunFolder(order.run) if order.run is not None else None
    facts = gather_script_facts(config, home, run)
    if facts.model.family is not None:
        what = "A model that takes images has no exact script: its rows would have tokens alone."
        raise RunError(what, "Write a short script, without --exact, or take the configuration (--yaml).")
    if facts.objective.trains_prompts and facts.traits.virtual_tokens == "inputs":
        raise RunError(
            f"TRL's {facts.objective.trl}Trainer does not support virtual tokens, which {config.method_name} trains.",
            "Take the configuration instead (--yaml), and run it with `loratory train`.",
        )
    report(f"Reading {config.dataset.source}.")
    tokenizer, _ = load_tokenizer(source)
    data = prepare_dataset(
        config.dataset, seed=config.training.seed, max_length=config.training.max_length, tokenizer=tokenizer, home=home,
        objective=objective_of(config), on_progress=lambda _: report(f"Reading {config.dataset.source}."),
    )  # fmt: skip
    pinned = read_provenance(run).dataset_fingerprint if run is not None else None
    if pinned is not None and pinned != data.report.fingerprint:
        raise DatasetError(
            f"The rows of {config.dataset.source} have changed since this run was trained on them.",
            "Restore the data, or write the script of a new run.",
        )
    if not len(data.held_out):
        dataset = config.dataset.model_copy(update={"eval_fraction": 0.0})
        facts = replace(facts, config=config.model_copy(update={"dataset": dataset}))
    settings = PlanSettings(
        training=config.training, batching=facts.model.batching, pinned_order=facts.model.pinned_order,
        sequences_per_row=facts.objective.sequences_per_example,
    )  # fmt: skip
    report("Writing the rows in the order of the run.")
    _write_rows(facts, data, settings, folder / "rows.parquet")
    (folder / "train.py").write_text(_train_py(facts, source, tokenizer, settings), encoding="utf-8")


def _write_rows(facts: ScriptFacts, data: PreparedDataset, settings: PlanSettings, file: Path) -> None:
    """Write the training rows with their batch and slot in each epoch, then the held-out rows."""
    lengths = data.train.lengths()
    planner = EpochPlanner(lengths, settings)
    training, size = settings.training, settings.training.per_device_train_batch_size
    epochs = math.ceil(training.num_train_epochs)
    if training.max_steps > 0:
        epochs = math.ceil(training.max_steps / planner.steps_per_epoch)
    batches: list[list[int]] = [[] for _ in range(len(data.train))]
    slots: list[list[int]] = [[] for _ in range(len(data.train))]
    for epoch in range(epochs):
        first = 0  # batch of the step
        for units in planner.units(epoch):
            if settings.batching == "padded":  # the order in which KTO estimates the KL
                units = sorted(units, key=lambda unit: -lengths[unit[0]])
            for slot, unit in enumerate(units):
                for row in unit:
                    batches[row].append(first + slot // size)
                    slots[row].append(slot)
            first += math.ceil(len(units) / size)
    fields = _FIELDS | (_PAIR_FIELDS if "pairs" in facts.objective.rows else {})
    if "ratings" in facts.objective.rows:
        fields |= {"desirable": pa.bool_()}
    schema = pa.schema([*fields.items(), ("held_out", pa.bool_()), ("batches", _TOKENS), ("slots", _TOKENS)])
    measured = choose_rows(data, settings).held_out if facts.measures else ()

    def values() -> Iterator[dict[str, Any]]:
        for number, row in enumerate(data.train):
            yield {**_tokens_of(row), "held_out": False, "batches": batches[number], "slots": slots[number]}
        for row in measured:
            yield {**_tokens_of(row), "held_out": True, "batches": [], "slots": []}

    rows = values()
    with ParquetWriter(file, schema, compression="zstd") as writer:
        while some := list(itertools.islice(rows, _ROWS_AT_ONCE)):
            writer.write_table(pa.Table.from_pylist(some, schema))


def _tokens_of(row: TokenizedRow) -> dict[str, Any]:
    values: dict[str, Any] = {"input_ids": row.input_ids, "labels": row.labels}
    if row.rejected is not None:
        values |= {"rejected_ids": row.rejected.input_ids, "rejected_labels": row.rejected.labels}
    if row.desirable is not None:
        values |= {"desirable": row.desirable}
    return values


def _train_py(facts: ScriptFacts, source: ModelSource, tokenizer: Any, settings: PlanSettings) -> str:
    size = settings.training.per_device_train_batch_size
    accumulate = settings.order.rows_per_step // size
    arguments = facts.exact_arguments | {"gradient_accumulation_steps": accumulate}
    if facts.estimates_kl:
        arguments["per_device_train_batch_size"] = max(size, 2)  # TRL requires it for its own estimate
    return render(
        facts.objective.name,
        facts=facts,
        head=exact_head(facts, list(differences_of(facts))),
        accumulate=accumulate,
        exact_arguments=without_defaults(arguments, TRL_DEFAULTS),
        peft_arguments=_peft_arguments(facts, source),
        template=tokenizer.chat_template if tokenizer.chat_template != own_template(Path(source.location)) else "",
        tokens={"eos_token": tokenizer.eos_token, "pad_token": tokenizer.pad_token},
    )


def _peft_arguments(facts: ScriptFacts, source: ModelSource) -> dict[str, Any]:
    """Return the arguments of PEFT's configuration class, with the modules that get an adapter in this model."""
    if facts.traits.trains_all:
        return {}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(source.location), trust_remote_code=False)
    adapter = facts.config.adapter
    chosen = method_trainer(adapter.method).model_arguments(model, adapter, source)
    public = {name: facts.model.location if value == source.location else value for name, value in chosen.items()}
    return facts.peft_arguments | {name: value for name, value in public.items() if value is not None}
