"""What replay holds: `python -m tests.benchmarks.replay [--preset NAME] [--seeds N ...] [--trainings N]`.

Trains a preset and measures it; where its verdict offers general rows, trains again with them, as the button does. The home
is Loratory's own, so `LORATORY_HOME` chooses where runs and the set of general rows are kept.
"""

import argparse

import loratory
from loratory.engine.evaluation.job import describe_gain
from loratory.engine.runs.history.verdict import Verdict


def main() -> None:
    """Print a line for each training: the mixture, the rise of the loss on general text with its interval, the gain."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="quickstart-cpu")
    parser.add_argument("--seeds", type=int, nargs="+", default=[42])
    parser.add_argument("--trainings", type=int, default=3, help="at most, for each seed")
    arguments = parser.parse_args()
    for seed in arguments.seeds:
        changes: dict[str, object] = {"training.seed": seed}
        for training in range(arguments.trainings):
            run = loratory.train(arguments.preset, changes | {"run.name": f"replay-{seed}-{training}"})
            result = run.evaluate(answered_rows=0)
            verdict = run.findings()[0]
            assert isinstance(verdict, Verdict)
            low, high = result.forgetting_interval or (float("nan"),) * 2
            print(
                f"seed {seed}, mixture {run.config.dataset.mix or 'none'}: "
                f"general loss {result.forgetting or 0:+.1%} (95% interval {low:+.1%} to {high:+.1%}), "
                f"{describe_gain(result.gain or 0)} on held-out rows, {run.summary.seconds or 0:.0f} s: {verdict.name}",
                flush=True,
            )
            if "dataset.mix" not in verdict.settings:
                break
            changes |= verdict.settings


if __name__ == "__main__":
    main()
