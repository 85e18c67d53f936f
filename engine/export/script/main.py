"""The part of a stand-alone script that takes its steps in order, and stops where they are not the run's."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from engine.config.run import RunConfig
from engine.export.script.arguments import arguments_code
from engine.export.script.rows import DataFacts
from engine.export.script.text import literal
from engine.export.script.training import ModelFacts


@dataclass(frozen=True)
class RunRows:
    """What a run made of its rows, by which a script proves that it makes the same of them."""

    fingerprint: str | None  # of the rows that it kept
    sequences: tuple[int, int]  # to learn from, held out
    tokens: tuple[int, int]  # learned, read only

    def constants(self) -> list[str]:
        """Lines that hold them in a script."""
        lines = []
        if self.fingerprint is not None:
            lines.append(f"RUN_ROWS = {literal(self.fingerprint)}  # the same of those that the run kept")
        return [
            *lines,
            f"RUN_SEQUENCES = {self.sequences}  # the run's, to learn from and held out",
            f"RUN_TOKENS = {self.tokens}  # of the former, learned and only read",
        ]


def main_code(config: RunConfig, model: ModelFacts, data: DataFacts, run: RunRows | None) -> str:
    """`said_by`, which reads the rows, `prepare`, which makes sequences of them, and `main`."""
    pieces = [_said_by(data)]
    if run is not None:
        same = "" if run.fingerprint is None else " or fingerprint(row for row, _ in kept) != RUN_ROWS"
        pieces.append(_REQUIRE_RUN.replace("$OTHER", same))
    pieces.append("\n".join((*_kept_lines(data), *_split_lines(config, run))))
    pieces.append("\n".join(_main_lines(config, model, data)))
    return "\n\n".join(piece.strip("\n") + "\n" for piece in pieces)


def _said_by(data: DataFacts) -> str:
    says = f"row[{literal(data.columns['text'])}]" if data.format == "text" else "conversation(row)"
    clear = ""
    rows = f"[{says} for row in read_rows(where)]"
    if data.left_out:
        clear = "    if where != DATA:\n        LEFT_OUT.clear()  # they number rows of DATA\n"
        rows = f"[{says} for number, row in enumerate(read_rows(where)) if number not in LEFT_OUT]"
    return _SAID_BY.replace("$CLEAR", clear).replace("$ROWS", rows)


_SAID_BY = '''
def said_by(where):
    """What the rows say, in order. Stops where they are not those that this script was written for."""
$CLEAR    try:
        rows = $ROWS
        found = fingerprint(rows)
    except Exception as error:  # a column is missing, a line is cut off …
        raise SystemExit(
            f"The rows of {where} cannot be read ({type(error).__name__}: {error}). "
            "They must have the form of those that this script was written for."
        ) from error
    if found != ROWS and where == DATA:
        raise SystemExit(
            f"The {len(rows):,} rows of {where} are not those that this script was written for. "
            "Put them back as they were, or name other rows with --data."
        )
    if found != ROWS:
        print(f"The {len(rows):,} rows of {where} are others than those that this script was written for.")
    return rows
'''

_REQUIRE_RUN = '''
def require_the_runs(kept, train, evaluation):
    """Stop unless the rows became what they became in the run."""

    def tokens(rows):
        learned = sum(label != -100 for row in rows for label in row["labels"])
        return learned, sum(len(row["labels"]) for row in rows) - learned

    # Some runs counted the tokens of held-out rows as well.
    counts, made = (tokens(train), tokens(train + evaluation)), (len(train), len(evaluation))
    if made != RUN_SEQUENCES or RUN_TOKENS not in counts$OTHER:
        raise SystemExit(
            f"The rows became {made} sequences of {counts[0]} tokens; in the run they were {RUN_SEQUENCES} of {RUN_TOKENS}. "
            "Use the data of the run and the versions that are named at the head of this file."
        )
'''


def _main_lines(config: RunConfig, model: ModelFacts, data: DataFacts) -> Iterator[str]:
    about_data = "dataset on the Hub" if data.kind == "hub" else "files with the rows"
    several = "" if data.kind == "hub" else ' nargs="+",'
    yield from (
        "def main():",
        "    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])",
        '    parser.add_argument("--model", default=MODEL, help="Hub id or folder of the base model")',
        f'    parser.add_argument("--data",{several} default=DATA, help="{about_data}")',
        '    parser.add_argument("--output", default=OUTPUT, help="folder for what is trained")',
        "    options = parser.parse_args()",
        "",
        "    tokenizer = load_tokenizer(options.model)",
        "    train, evaluation = prepare(tokenizer, options)",
        '    print(f"{len(train)} rows to learn from, {len(evaluation)} held out")',
    )
    if config.dataset.eval_fraction > 0 and data.held_out_draw:
        yield '    learned_tokens = sum(len(row["input_ids"]) for row in train)'
        yield f"    evaluation = measured(evaluation, int(learned_tokens * {config.training.num_train_epochs!r}))"
    yield from ("", "    torch.manual_seed(SEED)  # the adapter starts from random numbers", "    random.seed(SEED)")
    yield "    model = load_model(options.model)"
    yield from _step_lines(config)
    if config.model.quantization != "none":
        yield "    trained = {name: p.data for name, p in model.named_parameters() if p.requires_grad}"
    yield from _trainer_lines(config, model)
    yield from _end_lines(config, model)


def _kept_lines(data: DataFacts) -> Iterator[str]:
    useful = [
        "        # Rows whose learned part lies beyond MAX_LENGTH teach nothing.",
        '        sequences = [one for one in sequences if any(label != -100 for label in one["labels"])]',
        "        if sequences:",
        "            kept.append((row, sequences))",
    ]
    yield "def prepare(tokenizer, options):"
    yield '    """Sequences to learn from, and those that are held out."""'
    if data.format == "text":
        yield from (
            "    kept = []",
            "    for row in said_by(options.data):",
            "        sequences = encode(row, tokenizer)",
        )
        yield from useful
        return
    yield from (
        "    kept, refused = [], []",
        "    for row in said_by(options.data):",
        "        try:",
        "            sequences = encode(row, tokenizer)",
        "        except Refused as reason:",
        "            refused.append(reason)",
        "            continue",
        *useful,
        "    if refused:",
        '        print(f"{len(refused)} rows are left out; of the first, {refused[0]}")',
    )


def _split_lines(config: RunConfig, run: RunRows | None) -> Iterator[str]:
    measures = config.dataset.eval_fraction > 0
    nothing = "None of the rows can be learned from. Raise MAX_LENGTH, or name other rows with --data."
    yield from ("    if not kept:", f"        raise SystemExit({literal(nothing)})")
    sample = "kept" if config.dataset.max_samples is None else "sample"
    if sample != "kept":
        yield from (
            "    sample = kept",
            "    if MAX_SAMPLES < len(kept):",
            "        drawn = np.random.default_rng([SEED, 0]).choice(len(kept), size=MAX_SAMPLES, replace=False)",
            "        sample = [kept[row] for row in np.sort(drawn)]",
        )
    if measures:
        yield from (
            f"    apart = held_out([row for row, _ in {sample}])",
            f"    train = [one for (_, sequences), out in zip({sample}, apart) if not out for one in sequences]",
            f"    evaluation = [one for (_, sequences), out in zip({sample}, apart) if out for one in sequences]",
        )
    else:
        yield f"    train, evaluation = [one for _, sequences in {sample} for one in sequences], []"
    if run is not None:
        yield "    if (options.model, options.data) == (MODEL, DATA):"
        yield "        require_the_runs(kept, train, evaluation)"
    yield "    return train, evaluation"


def _step_lines(config: RunConfig) -> Iterator[str]:
    training = config.training
    measures = config.dataset.eval_fraction > 0
    needed = config.adapter.traits.script_steps_lines(config.adapter)
    if not needed and training.save_steps is not None and (training.eval_steps is not None or not measures):
        return  # nobody asks how many steps there are
    if training.max_steps > 0:
        yield f"    steps = {training.max_steps}"
        yield from needed
        return
    yield "    steps_per_epoch = math.ceil(len(Batches(train, None)) / ACCUMULATE)"
    epochs = training.num_train_epochs
    yield (
        f"    steps = math.ceil({epochs:g} * steps_per_epoch)"
        if epochs != math.floor(epochs)
        else (f"    steps = {int(epochs)} * steps_per_epoch")
    )
    yield from needed


def _trainer_lines(config: RunConfig, model: ModelFacts) -> list[str]:
    lines = [
        "    arguments = SFTConfig(",
        arguments_code(config, model).rstrip("\n"),
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
    callbacks = []
    if config.dataset.eval_fraction > 0 and config.training.early_stopping_patience is not None:
        callbacks.append(f"EarlyStoppingCallback({config.training.early_stopping_patience})")
    if (own := config.adapter.traits.script_callback(config.adapter)) is not None:
        callbacks.append(f"{own[0]}()")
    if callbacks:
        lines.append(f"        callbacks=[{', '.join(callbacks)}],")
    lines.append("    )")
    if config.model.quantization != "none":
        lines += [
            "    for name, parameter in trainer.model.named_parameters():",
            "        if name in trained:",
            "            parameter.data = trained[name]  # TRL rounds them to bfloat16 where the base is quantized",
        ]
    return lines


def _end_lines(config: RunConfig, model: ModelFacts) -> list[str]:
    lines = ["    trainer.train()"]
    if config.dataset.eval_fraction > 0:
        lines += [
            "    if trainer.state.global_step % arguments.eval_steps:",
            "        trainer.evaluate()",
        ]
    saved = "trainer.model"
    if config.adapter.traits.trains_all and model.compute != "float32":
        saved = f"trainer.model.to(torch.{model.compute})"
    return [
        *lines,
        "",
        f"    {saved}.save_pretrained(options.output)",
        "    tokenizer.save_pretrained(options.output)",
        '    Path(options.output, "log_history.json").write_text(json.dumps(trainer.state.log_history, indent=1))',
    ]
