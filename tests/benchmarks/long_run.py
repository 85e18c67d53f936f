"""The held-out loss over 300 steps, ours next to the plain script's: `python -m tests.benchmarks.long_run`.

The demo model learns the same Alpaca rows in the same order, two a step, with LoRA dropout off, so nothing but the
arithmetic can differ. At the same steps both are measured on the same held-out rows, each by its own means: ours
through the trainer's measurement, the plain script through transformers' own loss, row by row.
"""

import argparse
from pathlib import Path

from tests.benchmarks.training_trial import Recipe, TrialBook, faster_dtype

TOLERATED_DIFFERENCE = 0.01


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rows", type=int, default=2, help="that a step learns")
    parser.add_argument("--max-length", type=int, default=512, help="tokens after which rows are cut")
    parser.add_argument("--measurements", type=int, default=6)
    parser.add_argument("--plain-dtype", choices=["bfloat16", "float32"], default=faster_dtype())
    parser.add_argument(
        "--keep", type=Path, help="a folder for finished trials, from which an interrupted command continues"
    )
    options = parser.parse_args()
    measured_at = tuple(options.steps * number // options.measurements for number in range(1, options.measurements + 1))
    recipe = Recipe(
        options.steps,
        rows_per_pass=options.rows,
        accumulate=1,
        max_length=options.max_length,
        measured_at=measured_at,
        plain_dtype=options.plain_dtype,
    )
    book = TrialBook(options.keep)
    ours, plain = book.trial("ours", recipe), book.trial("plain", recipe)
    print(f"Held-out loss, plain script ({options.plain_dtype} weights) beside ours")
    print("  step     plain      ours   difference")
    worst = 0.0
    for step in measured_at:
        p, o = plain.held_out[str(step)], ours.held_out[str(step)]
        worst = max(worst, abs(o - p) / p)
        print(f"  {step:4d}  {p:8.4f}  {o:8.4f}   {(o - p) / p:+.2%}")
    first = list(zip(plain.losses, ours.losses, strict=True))[:50]
    print(f"  losses of the first {len(first)} steps differ by at most {max(abs(o - p) / p for p, o in first):.2%}")
    verdict = "as" if worst < TOLERATED_DIFFERENCE else "NOT as"
    print(f"  held-out losses by at most {worst:.2%}: {verdict} wanted (below {TOLERATED_DIFFERENCE:.0%})")


if __name__ == "__main__":
    main()
