"""How fast the worker's trainer learns, against the script that a person would write: `python -m tests.benchmarks.train_speed`.

Both learn the same Alpaca rows in the same order on the demo model, in turn, each trial in a process of its own. Printed
are the losses of the first steps side by side, the held-out loss after them, and the ratios of trained tokens per second
(min, median, max over the rounds). `--part long` measures the held-out loss on the way through 300 steps of two rows with
dropout off, so nothing but the arithmetic can differ: ours through the trainer's measurement, the script's through
transformers' own loss, row by row. `--part preferences` does DPO on the sample's pairs against TRL's trainer: LoRA, the base
as reference at every step, no activation checkpointing; it also prints the peak of memory.

There is more than one plain script; see `plain_script`. With LoRA dropout 0.05 and the same settings, ours is measured
against the tuned one (`--plain-dtype` reports what it loads). Our defaults are measured against the documented one, which
leaves to TRL and PEFT what we leave to ours, and against the tuned one with dropout as well.
"""

import argparse
import statistics

from tests.benchmarks.training_trial import WARM_UP_STEPS, Recipe, Trial, faster_dtype, measure

TOLERATED_LOSS_DIFFERENCE = 0.01
PARTS = ("losses", "ratios", "long", "preferences")
_LONG_STEPS = 300


class TrainSpeed:
    """The parts of the comparison.

    Args:
        options: Of the command line.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options

    def losses(self) -> None:
        """Compare the losses step by step, and the held-out loss in the end."""
        steps = self._options.loss_steps
        at = (steps,)
        accumulate = self._options.accumulate
        same = Recipe(steps, dropout=0.05, accumulate=accumulate, plain_dtype=self._options.plain_dtype, measured_at=at)
        plain = measure("plain", same)
        ours = measure("ours", same)
        defaults = measure("ours", Recipe(steps, accumulate=accumulate, measured_at=at))
        print(f"\nLosses with LoRA dropout 0.05, the same rows: plain ({self._options.plain_dtype}) · ours")
        pairs = list(zip(plain.losses, ours.losses, strict=True))
        for start in range(0, len(pairs), 5):
            row = "   ".join(f"{p:.4f} · {o:.4f}" for p, o in pairs[start : start + 5])
            print(f"  {start + 1:4d}  {row}")
        say_worst("losses of a step", max(abs(o - p) / p for p, o in pairs))
        trials = [("plain, dropout 0.05", plain), ("ours, dropout 0.05", ours), ("our defaults", defaults)]
        print(f"Held-out loss after {steps} steps")
        for name, trial in trials:
            print(f"  {name:<22}{trial.held_out[str(steps)]:.4f}")

    def ratios(self) -> None:
        """Trained tokens per second, ours against the plain scripts, in turn."""
        steps = self._options.steps
        accumulate = self._options.accumulate
        with_dropout = Recipe(steps, dropout=0.05, accumulate=accumulate, plain_dtype=self._options.plain_dtype)
        kinds = {
            "tuned": ("plain", with_dropout),
            "same": ("ours", with_dropout),
            "documented": ("plain", Recipe(steps, accumulate=accumulate, plain="documented")),
            "defaults": ("ours", Recipe(steps, accumulate=accumulate)),
        }
        trials: dict[str, list[Trial]] = {name: [] for name in kinds}
        for number in range(self._options.rounds):
            for name, (kind, recipe) in kinds.items():
                trials[name].append(measure(kind, recipe, f"round {number + 1}"))
        dtype = self._options.plain_dtype
        compare(
            f"Same settings, LoRA dropout 0.05, against the tuned script ({dtype})", trials["same"], trials["tuned"]
        )
        compare("Our defaults against the documented script", trials["defaults"], trials["documented"])
        compare(
            f"Our defaults against the tuned script ({dtype}) with dropout 0.05", trials["defaults"], trials["tuned"]
        )

    def long(self) -> None:
        """Compare the held-out loss at six moments of a long run."""
        measured_at = tuple(_LONG_STEPS * number // 6 for number in range(1, 7))
        dtype = self._options.plain_dtype
        recipe = Recipe(_LONG_STEPS, accumulate=1, measured_at=measured_at, plain_dtype=dtype)
        ours, plain = measure("ours", recipe), measure("plain", recipe)
        print(f"\nHeld-out loss, plain script ({dtype} weights) beside ours")
        differences = []
        for step in measured_at:
            p, o = plain.held_out[str(step)], ours.held_out[str(step)]
            differences.append((o - p) / p)
            print(f"  {step:4d}  {p:8.4f}  {o:8.4f}   {differences[-1]:+.2%}")
        say_worst("held-out losses", max(map(abs, differences)))

    def preferences(self) -> None:
        """DPO against TRL's trainer."""
        recipe = Recipe(12, max_length=256, objective="dpo")
        plain, ours = [], []
        for number in range(self._options.rounds):
            plain.append(measure("plain", recipe, f"round {number + 1}"))
            ours.append(measure("ours", recipe, f"round {number + 1}"))
        print("\nDPO, losses of the first round, TRL · ours")
        print("  " + "   ".join(f"{p:.4f} · {o:.4f}" for p, o in zip(plain[0].losses, ours[0].losses, strict=True)))
        compare(f"DPO, {recipe.plain_dtype}, {recipe.rows_per_pass} × {recipe.accumulate} pairs a step", ours, plain)
        for name, trials in (("TRL", plain), ("ours", ours)):
            print(f"  peak of {name:<8} MiB, min / median / max  {spread_words([trial.peak_mib for trial in trials])}")


def say_worst(what: str, worst: float) -> None:
    """Print the largest difference, and whether it is small enough."""
    verdict = "as" if worst < TOLERATED_LOSS_DIFFERENCE else "NOT as"
    print(f"  {what} differ by at most {worst:.2%}: {verdict} wanted (below {TOLERATED_LOSS_DIFFERENCE:.0%})")


def spread_words(values: list[float]) -> str:
    """Smallest, middle and largest."""
    return f"{min(values):.2f} / {statistics.median(values):.2f} / {max(values):.2f}"


def compare(title: str, ours: list[Trial], plain: list[Trial]) -> None:
    """Print speeds and their ratios, round by round."""
    pairs = list(zip(ours, plain, strict=True))
    print(f"\n{title}")
    print(f"  plain   {statistics.median(t.speed for t in plain):8.0f} trained tokens/s")
    print(f"  ours    {statistics.median(t.speed for t in ours):8.0f} trained tokens/s")
    print(f"  ratio, min / median / max         {spread_words([o.speed / p.speed for o, p in pairs])}")
    print(
        f"  ratio of processor time           {spread_words([o.cpu_speed / p.cpu_speed for o, p in pairs])}", flush=True
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, help="only this; all of them without it")
    parser.add_argument("--steps", type=int, default=15, help=f"of a timed trial; {WARM_UP_STEPS} of them warm up")
    parser.add_argument("--loss-steps", type=int, default=53)
    parser.add_argument("--accumulate", type=int, default=4, help="passes of two rows a step")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--plain-dtype", choices=["bfloat16", "float32"], default=faster_dtype())
    options = parser.parse_args()
    speed = TrainSpeed(options)
    for part in [options.part] if options.part else PARTS:
        getattr(speed, part)()


if __name__ == "__main__":
    main()
