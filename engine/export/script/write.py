"""A run as one stand-alone Python file on plain transformers, PEFT, TRL and datasets, with nothing of ours in it.

It does what the run did: the same text and masks, the same held-out rows, the same order, the same optimizer. What is
ours alone (joined rows, a quicker LoRA, checkpoints that are proved whole) changes speed and safety and not the losses.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from engine.config.run import RunConfig
from engine.errors import DatasetError
from engine.export.script.data import data_code
from engine.export.script.data_facts import look_at_data
from engine.export.script.main import RunRows, main_code
from engine.export.script.model_facts import look_at_model
from engine.export.script.rows import DataFacts
from engine.export.script.text import imports_of, literal
from engine.export.script.tokenizer import tokenizer_code
from engine.export.script.training import ModelFacts, model_code, trainer_code
from engine.paths import LoratoryHome
from engine.runs.history.reader import read_history
from engine.runs.provenance import environment_facts, read_provenance, run_title
from engine.runs.run import RunFolder


@dataclass(frozen=True)
class ScriptFacts:
    """Everything that a script is made of beside the configuration."""

    data: DataFacts
    model: ModelFacts
    title: str
    origin: str  # "the run 2026…" or "a configuration"
    versions: str
    rows_of_run: RunRows | None = None
    results: tuple[str, ...] = ()
    differences: tuple[str, ...] = ()  # what the script does otherwise than the run, in sentences


def gather_script_facts(config: RunConfig, home: LoratoryHome, run: RunFolder | None = None) -> ScriptFacts:
    """Look at the data, the model and, where there is one, the run.

    Raises:
        DatasetError: If the data cannot be read, is not what the run learned from, or is read otherwise by a script.
        ModelError: If a model that is named by a path is not there.
    """
    provenance = read_provenance(run) if run is not None else None
    libraries = (provenance.libraries if provenance is not None else None) or environment_facts()["libraries"]
    assert isinstance(libraries, dict)
    model = look_at_model(config, home, run)
    data = look_at_data(config, home)
    return ScriptFacts(
        data=data,
        model=model,
        title=run_title(config),
        origin=f"the run {run.path.name}" if run is not None else "a configuration",
        versions=", ".join(f"{name} {version}" for name, version in libraries.items()),
        rows_of_run=_rows_of(run, config, data) if run is not None else None,
        results=tuple(_results(run)) if run is not None else (),
        differences=tuple(_differences(config, model)),
    )


def write_script(config: RunConfig, facts: ScriptFacts) -> str:
    """The script as text."""
    if not facts.data.can_hold_out:
        config = config.model_copy(update={"dataset": config.dataset.model_copy(update={"eval_fraction": 0.0})})
    tokenizer = facts.model.tokenizer
    body = "\n\n".join(
        piece.strip("\n") + "\n"
        for piece in (
            _constants(config, facts),
            tokenizer_code(tokenizer, facts.model.revision),
            data_code(config, facts.data, takes_parts=tokenizer.takes_parts),
            model_code(config, facts.model),
            trainer_code(config, facts.model, facts.data),
            main_code(config, facts.model, facts.data, facts.rows_of_run),
            'if __name__ == "__main__":\n    main()',
        )
    )
    first = 'import os\n\nos.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # one GPU, as in the run\n\n'
    return f'"""{_head(config, facts)}"""\n\n{"" if facts.model.on_cpu else first}{imports_of(body)}\n\n{body}'


def _head(config: RunConfig, facts: ScriptFacts) -> str:
    packages = "torch transformers peft trl datasets"
    if config.model.quantization != "none" or "8bit" in config.training.optim or "paged" in config.training.optim:
        packages += " bitsandbytes"
    lines = [
        f"{facts.title}: {config.method_name} on plain transformers, PEFT, TRL and datasets.",
        "",
        f"Written by Loratory from {facts.origin}; it needs nothing of Loratory.",
        "",
        f"    pip install {packages}",
        "    python THIS_FILE [--model HUB_ID_OR_FOLDER] [--data FILE] [--output FOLDER]",
        "",
        f"Versions: {facts.versions}.",
        *facts.results,
    ]
    if facts.differences:
        lines += ["", "What it does otherwise:", *(f"- {difference}" for difference in facts.differences)]
    text = "\n".join(lines)
    return text.replace("\\", "\\\\").replace('"""', "'''")


def _rows_of(run: RunFolder, config: RunConfig, data: DataFacts) -> RunRows | None:
    """What the run made of its rows, where it got so far; rows that were mixed in are not in a script."""
    report, pinned = read_history(run.events).data_report, read_provenance(run).dataset_fingerprint
    if report is None or config.dataset.mix:
        return None
    # Rows that only the template refuses are told by the script itself.
    if pinned is not None and report.dropped_rows <= len(data.left_out) and pinned != data.fingerprint:
        raise DatasetError(
            f"The rows of {config.dataset.source} are no longer those that this run learned from.",
            "Put the data back as it was, or write the script of a new run.",
        )
    return RunRows(pinned, (report.train_rows, report.eval_rows), (report.trained_tokens, report.masked_tokens))


def _results(run: RunFolder) -> Iterator[str]:
    history = read_history(run.events)
    if history.last_step:
        loss = history.steps.last("loss")
        yield f"The run's last of {history.last_step:,} steps had a loss of {loss:.4f}." if loss is not None else ""
    if history.tuned_evals:
        last = history.tuned_evals[-1]
        yield f"Its held-out loss was {last.eval_loss:.4f} after step {last.step:,}."


def _differences(config: RunConfig, model: ModelFacts) -> Iterator[str]:
    training, adapter = config.training, config.adapter
    yield from adapter.traits.script_differences(adapter)
    if config.dataset.mix:
        yield f"It trains on {config.dataset.source} alone; the run mixed {', '.join(config.dataset.mix)} in as well."
    if not adapter.traits.starts_as_identity and config.dataset.eval_fraction:
        yield "The measurement before the first step is of the base model, as in the run."
    if training.early_stopping_patience is not None or training.load_best_model_at_end:
        yield "Checkpoints are saved at every measurement, because transformers goes back to saved ones only."
    if config.run.launcher == "accelerate":
        yield "It trains in one process; the run was started by Accelerate, whose processes shared each step."
    if not training.packing and not model.on_cpu and not model.grouped:
        yield "Rows are padded to the longest of their batch; the run may have joined them, with the same losses."


def _constants(config: RunConfig, facts: ScriptFacts) -> str:
    training, data, model = config.training, facts.data, facts.model
    lines = [f"MODEL = {literal(model.location)}  # {_about_model(config, model)}"]
    where = config.dataset.source if data.kind == "hub" else list(data.files)
    lines.append(f"DATA = {literal(where)}{_about_data(config)}")
    lines.append(f"OUTPUT = {literal(_slug(facts.title))}")
    lines += [
        "",
        f"SEED = {training.seed}",
        f"MAX_LENGTH = {training.max_length}  # tokens; longer rows are cut at the end",
    ]
    lines.append(f"BATCH = {training.per_device_train_batch_size}")
    lines.append(f"ACCUMULATE = {training.gradient_accumulation_steps}  # batches in one optimizer step")
    if config.dataset.eval_fraction > 0:
        lines.append(f"EVAL_FRACTION = {config.dataset.eval_fraction!r}  # of the rows are held out")
    if config.dataset.max_samples is not None:
        lines.append(f"MAX_SAMPLES = {config.dataset.max_samples}")
    lines.append(f"ROWS = {literal(data.fingerprint)}  # what they say, as a sha256")
    if data.left_out:
        listed = ", ".join(map(str, data.left_out))
        lines.append(f"LEFT_OUT = {{{listed}}}  # rows, from 0, that cannot be read or hold nothing to learn")
    if facts.rows_of_run is not None:
        lines += facts.rows_of_run.constants()
    if model.warm_start:
        lines.append(f"WARM_START = {literal(model.warm_start)}  # adapter that training starts from")
    template = model.tokenizer.written_template
    if template is not None:
        about = {
            "never": "what the run trained with; the model's own differs",
            "always": "the model has none of its own",
            "if_missing": "for a model that has none of its own",
        }[model.tokenizer.default_template]
        lines.append(f"CHAT_TEMPLATE = {literal(template)}  # {about}")
    return "\n".join(lines)


def _about_model(config: RunConfig, model: ModelFacts) -> str:
    if model.location.startswith(("/", "\\")) or ":\\" in model.location:
        name = config.model.id
        return f"{name} as Loratory prepared it" if not name.startswith(("/", "~", ".")) else "the base model's folder"
    return "on the Hugging Face Hub"


def _about_data(config: RunConfig) -> str:
    return "  # a sample that comes with Loratory" if config.dataset.source.startswith("sample:") else ""


def _slug(title: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", title).strip("-.")[:80] or "output"
