"""Export a run as one Python file on plain transformers, PEFT, TRL and datasets, without Loratory.

The faithful form repeats the run: the same text and masks, held-out rows, order and optimizer. Loratory's own features
(joined rows, faster LoRA layers, verified checkpoints) change speed and safety, not losses. The short form looks like
the usual tutorials, and lists what it leaves out.
"""

import re
from collections.abc import Iterator, Sequence

from engine.config.objectives import objective_of, preference_name
from engine.config.run import RunConfig
from engine.errors import DatasetError, RunError
from engine.export.script.data_facts import EXPORT_YAML, MODULES_OF_ROWS, look_at_data
from engine.export.script.facts import ScriptFacts
from engine.export.script.model_facts import ModelFacts, look_at_model
from engine.export.script.row_facts import DataFacts, RunRows
from engine.export.script.specialize import assemble
from engine.paths import LoratoryHome
from engine.runs.history.reader import read_history
from engine.runs.provenance import environment_facts, read_provenance, run_title
from engine.runs.run import RunFolder

_WORKER = "engine.export.script.worker"
_MODULES = (
    "engine.data.passes.split",
    "engine.data.render.template",
    "engine.data.render.encoded",
    "engine.data.step_plan",
    "engine.training.batching.steps",
    *MODULES_OF_ROWS,
    *(
        f"{_WORKER}.{name}"
        for name in ("encoding", "prepare", "batches", "preference_batches", "model", "trainer", "train")
    ),
)
_ONE_GPU = 'import os\n\nos.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # one GPU, as in the run\n\n'
_START = '\n\nif __name__ == "__main__":\n    main()\n'


def gather_script_facts(config: RunConfig, home: LoratoryHome, run: RunFolder | None = None) -> ScriptFacts:
    """Collect the facts of the data, the model and, where there is one, the run.

    Raises:
        DatasetError: If the data cannot be read, is not what the run was trained on, or a script would read it differently.
        ModelError: If a model that is named by a path is not there.
    """
    libraries = (read_provenance(run).libraries if run is not None else None) or environment_facts()["libraries"]
    assert isinstance(libraries, dict)
    model = look_at_model(config, home, run)
    data = look_at_data(config, home)
    run_rows = _rows_of(run, config, data) if run is not None else RunRows()
    title = run_title(config)
    if not data.can_hold_out:
        config = config.model_copy(update={"dataset": config.dataset.model_copy(update={"eval_fraction": 0.0})})
    return ScriptFacts(
        config=config,
        data=data,
        model=model,
        title=title,
        output=re.sub(r"[^A-Za-z0-9._-]+", "-", title).strip("-.")[:80] or "output",
        origin=f"the run {run.path.name}" if run is not None else "a configuration",
        versions=", ".join(f"{name} {version}" for name, version in libraries.items()),
        run_rows=run_rows,
        results=tuple(_results(run)) if run is not None else (),
        differences=tuple(_differences(config, model)),
    )


def write_script(facts: ScriptFacts) -> str:
    """Return the faithful form as text.

    Raises:
        RunError: If TRL's trainer of the objective cannot train this adapter.
    """
    if facts.objective.trains_prompts and facts.config.adapter.traits.virtual_tokens == "inputs":
        raise RunError(
            f"TRL's {facts.trl_trainer} does not support virtual tokens, which {facts.config.method_name} trains.",
            EXPORT_YAML,
        )
    code = assemble(_MODULES, ["main"], facts)
    return f"{_head(facts)}{'' if facts.model.on_cpu else _ONE_GPU}{code}{_START}"


def write_short_script(facts: ScriptFacts) -> str:
    """Return the short form as text.

    Raises:
        DatasetError: If the usual readers of datasets cannot read these rows.
    """
    data, config = facts.data, facts.config
    is_odd = data.left_out or data.has_list_rows or data.has_parts
    if facts.learns_preferences:
        has_no_prompt = data.columns.keys() == {"chosen", "rejected"} and not (data.turn_columns or data.has_dialogues)
        is_odd, module, does = (
            is_odd or has_no_prompt or "system" in data.columns,
            "short_preferences",
            facts.objective.label,
        )
    else:
        is_odd, module, does = is_odd or data.marks_completion, "short", config.method_name
    if is_odd:
        raise DatasetError(
            f"{config.dataset.source} holds rows that `load_dataset` cannot read.",
            "Use the faithful script, without --short, or write the rows into one JSONL file.",
        )
    head = [
        f"{facts.title}: {does} with transformers, PEFT and TRL.",
        "",
        f"    pip install {_packages(config)}",
        "",
        "Leaves out what the faithful script (`loratory script`, without --short) does:",
        *(f"- {one}" for one in _left_out(facts)),
        "",
    ]
    modules = [f"{_WORKER}.model", f"{_WORKER}.{module}"]
    return f"{_docstring(head)}{assemble(modules, ['main'], facts, plain=True)}"


def _left_out(facts: ScriptFacts) -> Iterator[str]:
    config, data = facts.config, facts.data
    yield "the run's own held-out rows and order of rows, so losses differ; the check that the rows are the run's"
    if facts.learns_preferences:
        yield "pairs with one prompt are all held out there, or none; here some of them may be"
        yield "what a chat template writes after an answer's end, such as a line feed, is not trained there"
    if facts.estimates_kl:
        yield "the KL is estimated over each step there, here over each batch of rows as they follow one another"
    if data.has_turns and not facts.learns_preferences:
        yield "tokens and masks exactly as in the run; the chat template is frozen there, with a fixed date"
    if facts.trains_several_answers:
        yield "every answer of a conversation is trained there, here the last one"
    if data.has_reasoning:
        yield "reasoning is placed there by the chat template, here it is as the rows have it"
    if not facts.learns_preferences and ("system" in data.columns or "history" in data.columns):
        yield "the columns with system prompts and earlier turns, which are read there"
    if config.dataset.max_samples is not None or config.dataset.mix:
        yield "the choice of rows: here all rows of the one dataset are used"
    if facts.model.revision or (facts.model.warm_start and not facts.learns_preferences):
        yield "the pinned revision of the model and the adapter that training starts from"
    if len(facts.short_peft_arguments) <= len(facts.peft_arguments):
        yield "arguments of PEFT that depend on the model or the batches"
    if facts.method_callbacks:
        yield f"a callback that {config.method_name} needs in training"


def _head(facts: ScriptFacts) -> str:
    by = " with " if facts.learns_preferences else ""
    lines = [
        f"{facts.title}: {preference_name(facts.config)}{by}{facts.config.method_name} on plain transformers, PEFT, TRL and datasets.",
        "",
        f"Written by Loratory from {facts.origin}; it does not need Loratory.",
        "",
        f"    pip install {_packages(facts.config)}",
        "    python THIS_FILE [--model HUB_ID_OR_FOLDER] [--data FILE] [--output FOLDER]",
        "",
        f"Versions: {facts.versions}.",
        *facts.results,
    ]
    if facts.differences:
        lines += ["", "Differences from the run:", *(f"- {difference}" for difference in facts.differences)]
    return _docstring(lines)


def _docstring(lines: Sequence[str]) -> str:
    text = "\n".join(lines).replace("\\", "\\\\").replace('"""', "'''")
    return f'"""{text}"""\n\n'


def _packages(config: RunConfig) -> str:
    needs_bitsandbytes = config.model.quantization != "none" or re.search("8bit|paged", config.training.optim)
    return "torch transformers peft trl datasets" + (" bitsandbytes" if needs_bitsandbytes else "")


def _rows_of(run: RunFolder, config: RunConfig, data: DataFacts) -> RunRows:
    report, fingerprint = read_history(run.events).data_report, read_provenance(run).dataset_fingerprint
    if report is None or config.dataset.mix:  # rows that were mixed in are not in a script
        return RunRows()
    # The script itself finds rows that only the template refuses.
    if fingerprint is not None and report.dropped_rows <= len(data.left_out) and fingerprint != data.fingerprint:
        raise DatasetError(
            f"The rows of {config.dataset.source} are no longer those that this run was trained on.",
            "Restore the data, or write the script of a new run.",
        )
    return RunRows(fingerprint, (report.train_rows, report.eval_rows), (report.trained_tokens, report.masked_tokens))


def _results(run: RunFolder) -> Iterator[str]:
    history = read_history(run.events)
    if history.last_step:
        loss = history.steps.last("loss")
        yield f"The run's last of {history.last_step:,} steps had a loss of {loss:.4f}." if loss is not None else ""
    if history.tuned_evals:
        last = history.tuned_evals[-1]
        yield f"Its held-out loss was {last.eval_loss:.4f} after step {last.step:,}."


def _differences(config: RunConfig, model: ModelFacts) -> Iterator[str]:
    training, adapter, objective = config.training, config.adapter, objective_of(config)
    if not (objective.learns_preferences and training.disable_dropout):
        yield from adapter.traits.script_differences(adapter)
    if objective.has_reference and "bias" in adapter.traits.fields and adapter.bias != "none":
        yield "The reference has the biases as they are trained, in the run those that training started with."
    if config.dataset.mix:
        yield f"It trains on {config.dataset.source} alone; the run mixed {', '.join(config.dataset.mix)} in as well."
    if not adapter.traits.starts_as_identity and config.dataset.eval_fraction:
        yield "The evaluation before the first step is of the base model, as in the run."
    if training.early_stopping_patience is not None or training.load_best_model_at_end:
        yield "Checkpoints are saved at every evaluation, because transformers can only restore saved ones."
    if config.run.launcher == "accelerate":
        also_weights = " and the weights (FSDP2)" if config.run.fsdp != "none" else ""
        yield f"It trains in one process; the run was started by Accelerate, whose processes shared each step{also_weights}."
    if not training.packing and not model.on_cpu and not model.groups_by_length:
        yield "Rows are padded to the longest of their batch; the run may have joined them, with the same losses."
