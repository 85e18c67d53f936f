"""How fast DPO learns here, against TRL's trainer: `python -m tests.benchmarks.preference_speed`.

Both learn the sample's pairs in the same order on the demo model at the same settings, in turn, each trial in a process of
its own: LoRA, the base as reference at every step, no activation checkpointing, weights in what this processor multiplies
faster. Printed are the losses side by side, the ratios of trained tokens per second, of both answers, and the peak of memory.
"""

import argparse
from pathlib import Path

from tests.benchmarks.train_speed import compare, spread_words
from tests.benchmarks.training_trial import WARM_UP_STEPS, Recipe, TrialBook


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12, help=f"of a trial; {WARM_UP_STEPS} of them warm up")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--keep", type=Path, help="a folder for finished trials, from which an interrupted command continues"
    )
    options = parser.parse_args()
    book, recipe = TrialBook(options.keep), Recipe(options.steps, max_length=256, objective="dpo")
    plain, ours = [], []
    for number in range(options.rounds):
        plain.append(book.trial("plain", recipe, f"round {number + 1}"))
        ours.append(book.trial("ours", recipe, f"round {number + 1}"))
    print("Losses of the first round, TRL · ours")
    print("  " + "   ".join(f"{p:.4f} · {o:.4f}" for p, o in zip(plain[0].losses, ours[0].losses, strict=True)))
    compare(f"DPO, {recipe.plain_dtype}, {recipe.rows_per_pass} × {recipe.accumulate} pairs a step", ours, plain)
    for name, trials in (("TRL", plain), ("ours", ours)):
        print(f"  peak of {name:<8} MiB, min / median / max  {spread_words([trial.peak_mib for trial in trials])}")


if __name__ == "__main__":
    main()
