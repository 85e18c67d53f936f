"""How fast the worker's trainer learns, against the script that a person would write: `python -m tests.benchmarks.train_speed`.

Both learn the same Alpaca rows in the same order on the demo model, in turn, each trial in a process of its own. Printed
are the ratios of trained tokens per second (min, median, max over the trials), the losses side by side, our step against
a bare PyTorch loop over the same operations, and the share of the processor's measured bfloat16 peak.

The plain script is TRL's as its documentation has it, in the form that is fastest on this processor: tokenized rows,
weights loaded in bfloat16, no checkpointing. `--plain-dtype float32` loads them as TRL does by itself.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

REPOSITORY = Path(__file__).resolve().parents[2]
ALPACA = REPOSITORY.parent / "shared" / "data" / "alpaca_en_999.json"

WARM_UP_STEPS = 3  # not timed: kernels are compiled for the first shapes
BATCH, ACCUMULATE, MAX_LENGTH = 2, 4, 512
LEARNING_RATE = 2e-4


@dataclass
class Trial:
    """What one process measured, after the warm-up."""

    seconds: float
    cpu_seconds: float
    trained_tokens: int
    tokens: int
    losses: list[float]
    held_out: float | None = None

    @property
    def speed(self) -> float:
        return self.trained_tokens / self.seconds

    @property
    def cpu_speed(self) -> float:
        """Trained tokens per second of processor time: what the ratio would be on a machine that nobody else uses."""
        return self.trained_tokens / self.cpu_seconds


class Prepared(NamedTuple):
    """Model folder, tokenizer and rows."""

    source: Any
    tokenizer: Any
    data: Any


def config_for(dropout: float, packing: bool, steps: int) -> Any:
    from engine.config.load import config_from_mapping

    return config_from_mapping(
        {
            "model": {"id": "smollm2-135m-instruct"},
            "adapter": {"r": 16, "lora_alpha": 32, "lora_dropout": dropout},
            "dataset": {"source": str(ALPACA) if ALPACA.exists() else "sample:loratory-faq", "eval_fraction": 0.1},
            "training": {
                "max_steps": steps,
                "per_device_train_batch_size": BATCH,
                "gradient_accumulation_steps": ACCUMULATE,
                "learning_rate": LEARNING_RATE,
                "max_length": MAX_LENGTH,
                "packing": packing,
            },
        }
    )


def prepare(config: Any) -> Prepared:
    from engine.data.prepare import prepare_dataset
    from engine.inspector.load_tokenizer import load_tokenizer
    from engine.models.source import resolve_model
    from engine.paths import LoratoryHome

    root = os.environ.get("LORATORY_TEST_HOME")
    home = LoratoryHome(Path(root)) if root else LoratoryHome.from_environment()
    source = resolve_model(config.model, home)
    tokenizer, _ = load_tokenizer(source)
    data = prepare_dataset(
        config.dataset, seed=config.training.seed, max_length=MAX_LENGTH, tokenizer=tokenizer, home=home
    )
    return Prepared(source, tokenizer, data)


class Clock:
    """Wall and processor time since the warm-up."""

    def __init__(self) -> None:
        self.began = (0.0, 0.0)

    def start(self) -> None:
        self.began = (time.perf_counter(), time.process_time())

    def read(self) -> tuple[float, float]:
        return time.perf_counter() - self.began[0], time.process_time() - self.began[1]


def run_ours(steps: int, dropout: float, packing: bool) -> Trial:
    """The trainer of the worker, as `engine.training.session` builds it."""
    from engine.training.allocator import keep_freed_memory

    keep_freed_memory()
    import torch

    from engine.training.assembly import assemble
    from engine.training.build import add_adapter, load_model, training_arguments
    from engine.training.placement import choose_placement
    from engine.training.precision import choose_precision
    from engine.training.steps import TrainerRows
    from engine.training.trainer import LoratoryTrainer, TrainerHooks

    config = config_for(dropout, packing, steps)
    source, tokenizer, data = prepare(config)
    placement = choose_placement(config)
    precision = choose_precision(config, placement.device)
    torch.manual_seed(config.training.seed)
    model = add_adapter(load_model(source, config, precision, placement), config, source)
    assembly = assemble(model, config, precision, placement, data.train, tokenizer.pad_token_id)
    clock, logged = Clock(), []

    def remember(step: Any) -> None:
        logged.append(step)
        if len(logged) == WARM_UP_STEPS:
            clock.start()

    trainer = LoratoryTrainer(
        model=model,
        args=training_arguments(config.training, Path(os.devnull).parent / "shm" / "train-speed", precision, placement),
        tokenizer=tokenizer,
        rows=TrainerRows(data.train, data.train.lengths(), data.held_out, data.held_out.lengths()),
        setup=assembly.setup,
        hooks=TrainerHooks(logged=remember),
    )
    trainer.train()
    seconds, cpu_seconds = clock.read()
    warm = logged[WARM_UP_STEPS - 1]
    return Trial(
        seconds,
        cpu_seconds,
        logged[-1].trained_tokens - warm.trained_tokens,
        logged[-1].tokens - warm.tokens,
        [step.loss for step in logged],
        trainer.measure_held_out().loss,
    )


def rows_in_order(data: Any, steps: int) -> list[int]:
    """Numbers of the rows in the order in which our trainer learns them, eight a step."""
    from engine.training.plan import EpochPlanner, PlanSettings

    planner = EpochPlanner(data.train.lengths(), PlanSettings(42, BATCH, ACCUMULATE, MAX_LENGTH, batching="joined"))
    order: list[int] = []
    epoch = 0
    while len(order) < steps * BATCH * ACCUMULATE:
        for step in planner.steps(epoch):
            rows = [row for one in step.passes for row in one.rows]
            if len(rows) == BATCH * ACCUMULATE:  # a short last step would shift all later ones
                order.extend(rows)
        epoch += 1
    return order[: steps * BATCH * ACCUMULATE]


def run_plain(steps: int, dropout: float, dtype_name: str) -> Trial:
    """TRL's trainer as its documentation uses it."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM
    from trl import SFTConfig, SFTTrainer

    config = config_for(dropout, False, steps)
    source, tokenizer, data = prepare(config)
    order = rows_in_order(data, steps)
    rows = [data.train[index] for index in order]
    trained = [sum(label != -100 for label in row.labels[1:]) for row in rows]
    clock, losses = Clock(), []

    class Plain(SFTTrainer):
        def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
            super().log(logs, start_time)
            if "loss" in logs:
                losses.append(logs["loss"])
                if len(losses) == WARM_UP_STEPS:
                    clock.start()

    torch.manual_seed(42)
    trainer = Plain(
        model=AutoModelForCausalLM.from_pretrained(source.location, dtype=getattr(torch, dtype_name)),
        args=SFTConfig(
            output_dir="/dev/shm/train-speed-plain",
            max_steps=steps,
            per_device_train_batch_size=BATCH,
            gradient_accumulation_steps=ACCUMULATE,
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="cosine",
            warmup_steps=0.03,
            logging_steps=1,
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            bf16=True,
            gradient_checkpointing=False,
            max_length=MAX_LENGTH,
            save_strategy="no",
            shuffle_dataset=False,
            train_sampling_strategy="sequential",
            seed=42,
        ),
        train_dataset=Dataset.from_list([{"input_ids": row.input_ids, "labels": row.labels} for row in rows]),
        processing_class=tokenizer,
        peft_config=LoraConfig(
            r=16, lora_alpha=32, lora_dropout=dropout, target_modules="all-linear", task_type="CAUSAL_LM"
        ),
    )
    trainer.train()
    seconds, cpu_seconds = clock.read()
    first = WARM_UP_STEPS * BATCH * ACCUMULATE
    held_out = plain_held_out(trainer.model, data)
    return Trial(
        seconds,
        cpu_seconds,
        sum(trained[first:]),
        sum(len(row.input_ids) for row in rows[first:]),
        losses,
        held_out,
    )


def plain_held_out(model: Any, data: Any) -> float:
    """Mean loss over the learned tokens of the held-out rows, by transformers' own loss, row by row."""
    import torch

    model.eval()
    total = tokens = 0.0
    for row in data.held_out:
        labels = torch.tensor([row.labels])
        count = int((labels[:, 1:] != -100).sum())
        if count:
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                total += float(model(input_ids=torch.tensor([row.input_ids]), labels=labels).loss) * count
            tokens += count
    return total / tokens


def run_bare(steps: int, dropout: float) -> Trial:
    """A bare loop over the same operations: the same model, passes, loss and optimizer, and nothing around them."""
    from engine.training.allocator import keep_freed_memory

    keep_freed_memory()
    import torch

    from engine.training.assembly import assemble
    from engine.training.batches import join
    from engine.training.build import add_adapter, load_model
    from engine.training.placement import choose_placement
    from engine.training.plan import EpochPlanner
    from engine.training.precision import choose_precision

    config = config_for(dropout, False, steps)
    source, tokenizer, data = prepare(config)
    placement = choose_placement(config)
    precision = choose_precision(config, placement.device)
    torch.manual_seed(config.training.seed)
    model = add_adapter(load_model(source, config, precision, placement), config, source)
    assembly = assemble(model, config, precision, placement, data.train, tokenizer.pad_token_id)
    planner = EpochPlanner(data.train.lengths(), assembly.setup.settings)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.0, fused=True)
    plan = [step for epoch in range(20) for step in planner.steps(epoch)][:steps]
    batches = [[join([data.train[row] for row in one.rows]) for one in step.passes] for step in plan]
    clock = Clock()
    losses: list[float] = []
    trained = tokens = 0
    model.train()
    for passes in batches:
        total = sum(one.trained_tokens for one in passes)
        loss_of_step = 0.0
        for one in passes:
            loss = model(**one.inputs, trained_tokens=one.trained) / total
            loss.backward()
            loss_of_step += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss_of_step)
        if len(losses) == WARM_UP_STEPS:
            clock.start()
        elif len(losses) > WARM_UP_STEPS:
            trained += total
            tokens += sum(one.tokens for one in passes)
    return Trial(*clock.read(), trained, tokens, losses)


def measured_peak_flops() -> float:
    """bfloat16 operations per second of a large matrix product on all cores: the best of many."""
    import torch

    a, b = torch.randn(2048, 2048, dtype=torch.bfloat16), torch.randn(2048, 2048, dtype=torch.bfloat16)
    best = 0.0
    for _ in range(40):
        began = time.perf_counter()
        torch.mm(a, b)
        best = max(best, 2 * 2048**3 / (time.perf_counter() - began))
    return best


def flops_per_token() -> float:
    """Matrix operations for a masked token: forward and back to the inputs through every frozen layer, 2 each, and through
    the adapter, whose weights need a gradient as well, 3 each. Trained tokens pass through the head besides."""
    frozen = 30 * (2 * 576 * 576 + 2 * 576 * 192 + 3 * 576 * 1536)
    adapter = 4_884_480
    return 2.0 * (2 * frozen + 3 * adapter)


HEAD_FLOPS_PER_TRAINED_TOKEN = 2.0 * 2 * 49152 * 576


def trial(kind: str, **options: Any) -> Trial:
    """Run one trial in a process of its own."""
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    process = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.train_speed", "--trial", kind, *arguments],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if process.returncode:
        raise SystemExit(process.stderr[-3000:])
    return Trial(**json.loads(process.stdout.splitlines()[-1]))


def spread(values: list[float]) -> str:
    return f"{min(values):.2f} / {statistics.median(values):.2f} / {max(values):.2f}"


def compare(title: str, ours: list[Trial], plain: list[Trial]) -> None:
    print(f"\n{title}")
    print(f"  plain   {statistics.median(t.speed for t in plain):8.0f} trained tokens/s")
    print(f"  ours    {statistics.median(t.speed for t in ours):8.0f} trained tokens/s")
    print(
        f"  ratio, min / median / max         {spread([o.speed / p.speed for o, p in zip(ours, plain, strict=True)])}"
    )
    ratios = [o.cpu_speed / p.cpu_speed for o, p in zip(ours, plain, strict=True)]
    print(f"  ratio of processor time           {spread(ratios)}")
    if ours[0].held_out is not None and plain[0].held_out is not None:
        print(
            f"  held-out loss                     plain {plain[0].held_out:.4f}, ours {ours[0].held_out:.4f}",
            flush=True,
        )


def report(options: argparse.Namespace) -> None:
    """Alternate the trials and print what they say."""
    same: list[Trial] = []
    defaults: list[Trial] = []
    plain: list[Trial] = []
    bare: list[Trial] = []
    for number in range(options.repeat):
        with contextlib.suppress(KeyboardInterrupt):
            plain.append(trial("plain", steps=options.steps, dropout=0.05, plain_dtype=options.plain_dtype))
            same.append(trial("ours", steps=options.steps, dropout=0.05))
            defaults.append(trial("ours", steps=options.steps, dropout=0.0))
            bare.append(trial("bare", steps=options.steps, dropout=0.0))
            print(f"round {number + 1} of {options.repeat} done", file=sys.stderr, flush=True)
    compare(f"Same settings: LoRA with dropout 0.05, {BATCH} x {ACCUMULATE} rows a step", same, plain)
    differences = [abs(o - p) / p for o, p in zip(same[0].losses[:50], plain[0].losses[:50], strict=True)]
    print(f"  losses of the first {len(differences)} steps differ by at most {max(differences):.2%}")
    compare("Our defaults (no dropout) against the same script, over the same rows", defaults, plain)
    print("\nOur step against a bare loop over the same operations")
    steps = [d.cpu_seconds / b.cpu_seconds for d, b in zip(defaults, bare, strict=True)]
    walls = [d.seconds / b.seconds for d, b in zip(defaults, bare, strict=True)]
    print(f"  time, min / median / max          {spread(walls)}")
    print(f"  processor time                    {spread(steps)}")
    best = max(defaults, key=lambda t: t.speed)
    flops = best.tokens * flops_per_token() + best.trained_tokens * HEAD_FLOPS_PER_TRAINED_TOKEN
    peak = measured_peak_flops()
    print(f"\nbfloat16 peak of this processor, measured: {peak / 1e12:.2f} TFLOP/s")
    print(f"  share of it in matrix products    {flops / best.seconds / peak:.0%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trial", choices=["plain", "ours", "bare"], help="measure one, print JSON")
    parser.add_argument("--steps", type=int, default=53)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--dropout", type=float, default=0.05)
    parser.add_argument("--packing", type=int, default=0)
    parser.add_argument("--plain-dtype", choices=["bfloat16", "float32"], default="bfloat16")
    options = parser.parse_args()
    if options.trial is None:
        report(options)
        return
    if options.trial == "plain":
        result = run_plain(options.steps, options.dropout, options.plain_dtype)
    elif options.trial == "ours":
        result = run_ours(options.steps, options.dropout, bool(options.packing))
    else:
        result = run_bare(options.steps, options.dropout)
    print(json.dumps(asdict(result)))


if __name__ == "__main__":
    main()
