"""The half of a stand-alone script that loads the model and trains it: only what this configuration needs."""

from dataclasses import dataclass

from engine.config.run import RunConfig
from engine.export.script.rows import DataFacts
from engine.export.script.text import argument, literal
from engine.export.script.tokenizer import TokenizerFacts


@dataclass(frozen=True)
class ModelFacts:
    """What is known about the model and the device of the run.

    Attributes:
        location: Hub id or folder, as `from_pretrained` takes it.
        revision: Commit on the Hub.
        compute: Dtype of computation: bfloat16, float16 or float32.
        on_cpu: Whether the run computes on a CPU.
        tokenizer: What is known about the tokenizer.
        warm_start: Folder of the adapter that training starts from.
        grouped: Whether the rows of a step are of like length, as where they are padded.
    """

    location: str
    compute: str
    on_cpu: bool
    tokenizer: TokenizerFacts
    revision: str | None = None
    warm_start: str | None = None
    grouped: bool = False


def model_code(config: RunConfig, facts: ModelFacts) -> str:
    """`load_model` and, where there is an adapter, `add_adapter`."""
    adapter, quantization = config.adapter, config.model.quantization
    arguments = [f"dtype=torch.{'float32' if adapter.traits.trains_all else facts.compute}"]
    if facts.revision:
        arguments.append(f"revision={literal(facts.revision)} if name == MODEL else None")
    if config.model.attn_implementation != "auto":
        arguments.append(f'attn_implementation="{config.model.attn_implementation}"')
    if quantization == "int8":
        arguments.append("quantization_config=BitsAndBytesConfig(load_in_8bit=True)")
    elif quantization != "none":
        arguments.append(f"quantization_config={_four_bits(config, facts)}")
    if quantization != "none" or not facts.on_cpu:
        arguments.append(_device_map(config, on_cpu=facts.on_cpu))
    listed = "".join(f"        {argument},\n" for argument in arguments)
    lines = [
        f"    model = AutoModelForCausalLM.from_pretrained(\n        name,\n{listed}    )",
        "    model.config.use_cache = False",
    ]
    if quantization in ("nf4", "fp4") and facts.on_cpu:
        lines.append(_UNPACKED)
    if adapter.traits.trains_all:
        lines.append("    return model")
    else:
        lines += [*_adapter_lines(config), *_WARM_START[bool(facts.warm_start)]]
        # Trained weights are held in float32, whatever the frozen ones are.
        lines.append(_FLOAT32)
    about = "The model, all of which is trained" if adapter.traits.trains_all else "The frozen model with its adapter"
    return f'def load_model(name):\n    """{about}."""\n' + "\n".join(lines) + "\n"


def _device_map(config: RunConfig, *, on_cpu: bool) -> str:
    if config.run.spread_over > 1:
        return 'device_map="balanced"'
    return 'device_map={"": "cpu"}' if on_cpu else 'device_map={"": 0}'


def _four_bits(config: RunConfig, facts: ModelFacts) -> str:
    return (
        "BitsAndBytesConfig(\n"
        "            load_in_4bit=True,\n"
        f'            bnb_4bit_quant_type="{config.model.quantization}",\n'
        f"            bnb_4bit_use_double_quant={config.model.double_quant},\n"
        f"            bnb_4bit_compute_dtype=torch.{facts.compute},\n"
        "        )"
    )


_UNPACKED = """\
    for module in model.modules():
        # bitsandbytes would repack 4-bit weights for inference at the first measurement; those cannot be trained through.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False"""

_FLOAT32 = """\
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()  # trained weights are held in float32
    model.print_trainable_parameters()
    return model"""

_WARM_START = {
    False: (),
    True: ('    set_peft_model_state_dict(model, load_file(f"{WARM_START}/adapter_model.safetensors"))',),
}


def _adapter_lines(config: RunConfig) -> list[str]:
    """The lines that put the adapter on the model, with the arguments of the trainer."""
    adapter, method = config.adapter, config.adapter.traits
    lines = method.script_lines(adapter)
    settings = [f"{name}={argument(value)}" for name, value in method.script_arguments(adapter).items()]
    inside = "".join(f"        {setting},\n" for setting in ('task_type="CAUSAL_LM"', *settings))
    return [
        *lines,
        f"    settings = {method.peft_class}(\n{inside}    )",
        "    model = get_peft_model(model, settings)",
    ]


def trainer_code(config: RunConfig, facts: ModelFacts, data: DataFacts) -> str:
    """`Batches`, `collate` and `Trainer`."""
    packing = config.training.packing
    plain = _GROUPED_BATCHES if facts.grouped else _BATCHES
    pieces = [_PACKED_BATCHES if packing else plain, _PACKED_COLLATE if packing else _COLLATE]
    measures = config.dataset.eval_fraction > 0
    evaluate = _EVALUATE if measures else ""
    if packing:  # `collate` takes sequences of rows
        evaluate = evaluate.replace("collate([self.eval_dataset[row] for", "collate([[self.eval_dataset[row]] for")
    if config.model.quantization == "int8":
        evaluate = evaluate.replace(
            "        self.model.eval()\n",
            "        self.model.eval()\n"
            "        for module in self.model.modules():\n"
            '            if type(module).__name__ == "Linear8bitLt" and not hasattr(module, "lora_A"):\n'
            "                module.train()  # else its inputs would be rounded as well, as they are not in training\n",
        )
    if not config.adapter.traits.starts_as_identity or config.adapter.warm_start:
        evaluate = evaluate.replace(
            "        with torch.no_grad(), self.compute_loss_context_manager():",
            "        # Before the first step the base is measured without what is to be trained.\n"
            "        off = self.model.disable_adapter() if self.state.global_step == 0 else contextlib.nullcontext()\n"
            "        with torch.no_grad(), self.compute_loss_context_manager(), off:",
        )
    callback = config.adapter.traits.script_callback(config.adapter)
    if callback is not None:
        pieces.append(callback[1])
    pieces.append(_TRAINER + evaluate)
    if measures and data.held_out_draw:
        pieces.append(_DRAW)
    return "\n\n".join(piece.strip("\n") + "\n" for piece in pieces)


_BATCHES = '''
class Batches(IterableDataset):
    """The run's order: rows are shuffled anew for each epoch, by seed and epoch alone."""

    def __init__(self, rows, epoch):
        self.rows, self.epoch = rows, epoch

    def __len__(self):
        return math.ceil(len(self.rows) / BATCH)

    def __iter__(self):
        order = list(range(len(self.rows)))
        random.Random(SEED * 1_000_003 + self.epoch()).shuffle(order)
        for start in range(0, len(order), BATCH):
            yield [self.rows[row] for row in order[start : start + BATCH]]
'''

_GROUPED_BATCHES = '''
class Batches(IterableDataset):
    """The run's order: rows are shuffled anew for each epoch, by seed and epoch alone, and steps are of like length."""

    def __init__(self, rows, epoch):
        self.rows, self.epoch = rows, epoch
        self.lengths = [len(row["input_ids"]) for row in rows]

    def __len__(self):
        return math.ceil(len(self.rows) / BATCH)

    def __iter__(self):
        order = list(range(len(self.rows)))
        random.Random(SEED * 1_000_003 + self.epoch()).shuffle(order)
        size = BATCH * ACCUMULATE
        block = size * max(1, min(50, math.ceil(len(order) / size) // 4))
        whole = len(order) - len(order) % size
        steps = []
        for begin in range(0, whole, block):
            alike = sorted(order[begin : min(begin + block, whole)], key=lambda row: -self.lengths[row])
            steps += [alike[start : start + size] for start in range(0, len(alike), size)]
        random.Random(SEED * 1_000_003 + self.epoch()).shuffle(steps)
        for step in [*steps, order[whole:]]:
            step = sorted(step, key=lambda row: -self.lengths[row])
            for start in range(0, len(step), BATCH):
                yield [self.rows[row] for row in step[start : start + BATCH]]
'''

_PACKED_BATCHES = '''
def packed(lengths, order):
    """Fill sequences of MAX_LENGTH tokens with rows, longest first, each where it leaves the least room."""
    sequences, free = [], {}  # free: numbers of sequences, by the room that they have left
    for row in sorted(order, key=lambda row: -lengths[row]):
        room = min((room for room, numbers in free.items() if numbers and room >= lengths[row]), default=MAX_LENGTH)
        if free.get(room):
            number = free[room].pop()
        else:
            number = len(sequences)
            sequences.append([])
        sequences[number].append(row)
        if room > lengths[row]:
            free.setdefault(room - lengths[row], []).append(number)
    return sequences


class Batches(IterableDataset):
    """The run's order: rows are shuffled anew for each epoch, by seed and epoch alone, and then packed."""

    def __init__(self, rows, epoch):
        self.rows, self.epoch = rows, epoch
        self.lengths = [len(row["input_ids"]) for row in rows]

    def __len__(self):
        return math.ceil(len(packed(self.lengths, range(len(self.rows)))) / BATCH)

    def __iter__(self):
        order = list(range(len(self.rows)))
        random.Random(SEED * 1_000_003 + self.epoch()).shuffle(order)
        sequences = packed(self.lengths, order)
        random.Random(SEED * 1_000_003 + self.epoch()).shuffle(sequences)
        for start in range(0, len(sequences), BATCH):
            yield [[self.rows[row] for row in rows] for rows in sequences[start : start + BATCH]]
'''

_COLLATE = '''
def collate(rows):
    """Rows side by side, filled up at the end; what fills up is neither seen nor learned."""
    longest = max(len(row["input_ids"]) for row in rows)

    def filled(values, filler):
        return values + [filler] * (longest - len(values))

    return {
        "input_ids": torch.tensor([filled(row["input_ids"], 0) for row in rows]),
        "attention_mask": torch.tensor([filled([1] * len(row["input_ids"]), 0) for row in rows]),
        "labels": torch.tensor([filled(row["labels"], -100) for row in rows]),
    }
'''

_PACKED_COLLATE = '''
def collate(sequences):
    """Sequences of rows side by side. Positions begin anew with each row, by which transformers keeps rows apart."""
    longest = max(sum(len(row["input_ids"]) for row in rows) for rows in sequences)
    ids, positions, labels = [], [], []
    for rows in sequences:
        missing = longest - sum(len(row["input_ids"]) for row in rows)
        ids.append([token for row in rows for token in row["input_ids"]] + [0] * missing)
        positions.append([place for row in rows for place in range(len(row["input_ids"]))] + list(range(missing)))
        # A row's first token is not learned from the end of the row before.
        labels.append([label for row in rows for label in (-100, *row["labels"][1:])] + [-100] * missing)
    return {
        "input_ids": torch.tensor(ids),
        "position_ids": torch.tensor(positions),
        "labels": torch.tensor(labels),
    }
'''

_TRAINER = '''
class Trainer(SFTTrainer):
    """TRL's trainer with the run's order of rows and its way of measuring."""

    def get_train_dataloader(self):
        rows = list(self.train_dataset)
        batches = Batches(rows, lambda: self.state.global_step // math.ceil(len(batches) / ACCUMULATE))
        return DataLoader(batches, batch_size=None, collate_fn=collate)
'''

_EVALUATE = '''
    def evaluate(self, *_, **__):
        """Mean loss over the learned tokens of the held-out rows, in nats."""
        self.model.eval()
        summed, tokens = 0.0, 0
        longest_first = sorted(range(len(self.eval_dataset)), key=lambda row: -len(self.eval_dataset[row]["input_ids"]))
        with torch.no_grad(), self.compute_loss_context_manager():
            for start in range(0, len(longest_first), BATCH):
                batch = collate([self.eval_dataset[row] for row in longest_first[start : start + BATCH]])
                batch = {name: values.to(self.args.device) for name, values in batch.items()}
                labels = batch.pop("labels")[:, 1:].flatten()
                logits = self.model(**batch).logits[:, :-1].flatten(0, 1)
                learned = labels != -100
                summed += cross_entropy(logits[learned].float(), labels[learned], reduction="sum").item()
                tokens += int(learned.sum())
        self.model.train()
        metrics = {"eval_loss": summed / tokens}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics
'''

_DRAW = '''
def measured(rows, learned_tokens):
    """The held-out rows that are measured on the way: an even draw, where all of them would cost more than they tell."""
    lengths = [len(row["input_ids"]) for row in rows]
    budget = max(16_384, int(0.03 * learned_tokens))
    if sum(lengths) <= budget:
        return rows
    order = list(range(len(rows)))
    random.Random(SEED).shuffle(order)
    chosen, tokens = [], 0
    for row in order:
        if chosen and tokens + lengths[row] > budget:
            break
        chosen.append(row)
        tokens += lengths[row]
    return [rows[row] for row in sorted(chosen)]
'''
