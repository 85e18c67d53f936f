"""A run as one stand-alone Python file on plain transformers, PEFT, TRL and datasets, with nothing of ours in it.

It does what the run did: the same text and masks, the same held-out rows, the same order, the same optimizer. What is
ours alone (joined rows, a quicker LoRA, checkpoints that are proved whole) changes speed and safety and not the losses.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

from engine.config.run import RunConfig
from engine.export.script_arguments import arguments_code
from engine.export.script_data import DataFacts, data_code
from engine.export.script_facts import asks_for_the_date, look_at_data, look_at_model, unsaid_about_data
from engine.export.script_text import literal
from engine.export.script_training import ModelFacts, model_code, trainer_code
from engine.paths import LoratoryHome
from engine.runs.history import read_history
from engine.runs.provenance import environment_facts, read_provenance, run_title
from engine.runs.run import RunFolder

_PLAIN_IMPORTS = ("argparse", "contextlib", "csv", "gzip", "hashlib", "json", "math", "os", "random", "re")
# Module, names; a line is written for those that the script uses.
_IMPORTS = (
    ("pathlib", ("Path",)),
    ("datasets", ("Dataset", "load_dataset")),
    ("peft", ("IA3Config", "LoraConfig", "PrefixTuningConfig", "get_peft_model", "set_peft_model_state_dict")),
    ("safetensors.torch", ("load_file",)),
    ("torch.nn.functional", ("cross_entropy",)),
    ("torch.utils.data", ("DataLoader", "IterableDataset")),
    ("transformers", ("AutoModelForCausalLM", "AutoTokenizer", "BitsAndBytesConfig", "EarlyStoppingCallback")),
    ("trl", ("SFTConfig", "SFTTrainer")),
)

_DATE = (
    "The model's chat template writes today's date, which a run fixes at 2025-01-01; the script of a finished run holds "
    "the fixed template."
)


@dataclass(frozen=True)
class ScriptFacts:
    """Everything that a script is made of beside the configuration."""

    data: DataFacts
    model: ModelFacts
    title: str
    origin: str  # "the run 2026…" or "a configuration"
    versions: str
    results: tuple[str, ...] = ()
    differences: tuple[str, ...] = ()  # what the script does otherwise than the run, in sentences


def gather_script_facts(config: RunConfig, home: LoratoryHome, run: RunFolder | None = None) -> ScriptFacts:
    """Look at the data, the model and, where there is one, the run.

    Raises:
        DatasetError: If the data cannot be read.
        ModelError: If a model that is named by a path is not there.
    """
    provenance = read_provenance(run) if run is not None else None
    libraries = (provenance.libraries if provenance is not None else None) or environment_facts()["libraries"]
    assert isinstance(libraries, dict)
    model = look_at_model(config, home, run)
    return ScriptFacts(
        data=look_at_data(config, home),
        model=model,
        title=run_title(config),
        origin=f"the run {run.path.name}" if run is not None else "a configuration",
        versions=", ".join(f"{name} {version}" for name, version in libraries.items()),
        results=tuple(_results(run)) if run is not None else (),
        differences=(
            *_differences(config, model),
            *((_DATE,) if asks_for_the_date(config, home, model) else ()),
            *unsaid_about_data(config, home),
        ),
    )


def write_script(config: RunConfig, facts: ScriptFacts) -> str:
    """The script as text."""
    body = "\n\n".join(
        piece.strip("\n") + "\n"
        for piece in (
            _constants(config, facts),
            data_code(config, facts.data),
            model_code(config, facts.model),
            trainer_code(config, facts.model, facts.data),
            _main(config, facts),
            'if __name__ == "__main__":\n    main()',
        )
    )
    first = 'import os\n\nos.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # one GPU, as in the run\n\n'
    return f'"""{_head(config, facts)}"""\n\n{"" if facts.model.on_cpu else first}{_imports(body)}\n\n{body}'


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
    if adapter.method == "lora" and adapter.lora_dropout:
        yield "Dropout draws other random numbers than the run did, so that losses differ by chance."
    if config.dataset.mix:
        yield f"It trains on {config.dataset.source} alone; the run mixed {', '.join(config.dataset.mix)} in as well."
    if adapter.method == "prefix_tuning" and config.dataset.eval_fraction:
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
    if data.left_out:
        listed = ", ".join(map(str, data.left_out))
        lines.append(f"LEFT_OUT = {{{listed}}}  # rows, from 0, that cannot be read or hold nothing to learn")
    if model.warm_start:
        lines.append(f"WARM_START = {literal(model.warm_start)}  # adapter that training starts from")
    if model.template is not None:
        lines.append(f"CHAT_TEMPLATE = {literal(model.template)}  # what the run trained with; the model's own differs")
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


def _imports(body: str) -> str:
    def used(name: str) -> bool:
        return re.search(rf"(?<![\w.\"]){name}\b", body) is not None

    plain = [f"import {name}" for name in _PLAIN_IMPORTS if re.search(rf"(?<![\w.]){name}\.", body)]
    path = ["from pathlib import Path"] if used("Path") else []
    third = ["import numpy as np"] if "np." in body else []
    third.append("import torch")
    for module, names in _IMPORTS[1:]:
        needed = [name for name in names if used(name)]
        if needed:
            third.append(f"from {module} import {', '.join(needed)}")
    return "\n".join([*plain, *path, "", *third]) + "\n"


def _main(config: RunConfig, facts: ScriptFacts) -> str:
    training, data = config.training, facts.data
    measures = config.dataset.eval_fraction > 0
    about_data = "dataset on the Hub" if data.kind == "hub" else "files with the rows"
    several = "" if data.kind == "hub" else ' nargs="+",'
    lines = [
        "def main():",
        "    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])",
        '    parser.add_argument("--model", default=MODEL, help="Hub id or folder of the base model")',
        f'    parser.add_argument("--data",{several} default=DATA, help="{about_data}")',
        '    parser.add_argument("--output", default=OUTPUT, help="folder for what is trained")',
        "    options = parser.parse_args()",
        "",
        "    tokenizer = AutoTokenizer.from_pretrained(options.model)",
        "    if tokenizer.pad_token is None:",
        "        tokenizer.pad_token = tokenizer.eos_token  # padding is masked, so that any token serves",
    ]
    if facts.model.template is not None:
        lines.append("    tokenizer.chat_template = CHAT_TEMPLATE")
    lines += ["    kept = []", *_row_lines(data)]
    lines += [
        "        # Rows whose learned part lies beyond MAX_LENGTH teach nothing.",
        "        sequences = [one for one in encode(row, tokenizer) if any(label != -100 for label in one['labels'])]".replace(
            "'", '"'
        ),
        "        if sequences:",
        "            kept.append((row, sequences))",
    ]
    if config.dataset.max_samples is not None:
        lines += [
            "    if MAX_SAMPLES < len(kept):",
            "        drawn = np.random.default_rng([SEED, 0]).choice(len(kept), size=MAX_SAMPLES, replace=False)",
            "        kept = [kept[row] for row in np.sort(drawn)]",
        ]
    if measures:
        lines += [
            "    apart = held_out([row for row, _ in kept])",
            "    train = [one for (_, sequences), out in zip(kept, apart) if not out for one in sequences]",
            "    evaluation = [one for (_, sequences), out in zip(kept, apart) if out for one in sequences]",
        ]
        if data.held_out_draw:
            lines += [
                '    learned_tokens = sum(len(row["input_ids"]) for row in train)',
                f"    evaluation = measured(evaluation, int(learned_tokens * {training.num_train_epochs!r}))",
            ]
        lines.append('    print(f"{len(train)} rows to learn from, {len(evaluation)} held out")')
    else:
        lines += [
            "    train = [one for _, sequences in kept for one in sequences]",
            '    print(f"{len(train)} rows to learn from")',
        ]
    lines += ["", "    torch.manual_seed(SEED)  # the adapter starts from random numbers", "    random.seed(SEED)"]
    lines.append("    model = load_model(options.model)")
    lines += list(_step_lines(config))
    if config.model.quantization != "none":
        lines.append("    trained = {name: p.data for name, p in model.named_parameters() if p.requires_grad}")
    lines += _trainer_lines(config, facts)
    lines += _end_lines(config, facts)
    return "\n".join(lines)


def _row_lines(data: DataFacts) -> list[str]:
    row = f"row[{literal(data.columns['text'])}]" if data.format == "text" else "conversation(row)"
    rows = f"row = {row}"
    if data.left_out:
        return [
            "    for number, row in enumerate(read_rows(options.data)):",
            "        if number in LEFT_OUT:",
            "            continue",
            f"        {rows}",
        ]
    return ["    for row in read_rows(options.data):", f"        {rows}"]


def _step_lines(config: RunConfig) -> Iterator[str]:
    training = config.training
    measures = config.dataset.eval_fraction > 0
    if training.save_steps is not None and (training.eval_steps is not None or not measures):
        return  # nobody asks how many steps there are
    if training.max_steps > 0:
        yield f"    steps = {training.max_steps}"
        return
    yield "    steps_per_epoch = math.ceil(len(Batches(train, None)) / ACCUMULATE)"
    epochs = training.num_train_epochs
    yield (
        f"    steps = math.ceil({epochs:g} * steps_per_epoch)"
        if epochs != math.floor(epochs)
        else (f"    steps = {int(epochs)} * steps_per_epoch")
    )


def _trainer_lines(config: RunConfig, facts: ScriptFacts) -> list[str]:
    lines = [
        "    arguments = SFTConfig(",
        arguments_code(config, facts.model).rstrip("\n"),
        "    )",
        "    trainer = Trainer(",
        "        model=model,",
        "        args=arguments,",
        "        processing_class=tokenizer,",
        "        data_collator=collate,",
        "        train_dataset=Dataset.from_list(train),",
    ]
    if config.dataset.eval_fraction > 0:
        lines.append("        eval_dataset=Dataset.from_list(evaluation),")
        if config.training.early_stopping_patience is not None:
            lines.append(f"        callbacks=[EarlyStoppingCallback({config.training.early_stopping_patience})],")
    lines.append("    )")
    if config.model.quantization != "none":
        lines += [
            "    for name, parameter in trainer.model.named_parameters():",
            "        if name in trained:",
            "            parameter.data = trained[name]  # TRL rounds them to bfloat16 where the base is quantized",
        ]
    return lines


def _end_lines(config: RunConfig, facts: ScriptFacts) -> list[str]:
    lines = ["    trainer.train()"]
    if config.dataset.eval_fraction > 0:
        lines += [
            "    if trainer.state.global_step % arguments.eval_steps:",
            "        trainer.evaluate()",
        ]
    model = "trainer.model"
    if config.adapter.method == "none" and facts.model.compute != "float32":
        model = f"trainer.model.to(torch.{facts.model.compute})"
    return [
        *lines,
        "",
        f"    {model}.save_pretrained(options.output)",
        "    tokenizer.save_pretrained(options.output)",
        '    Path(options.output, "log_history.json").write_text(json.dumps(trainer.state.log_history, indent=1))',
    ]
