"""A run's events as a table of pandas, without Loratory: `python examples/read_events.py RUN_FOLDER`.

The folder is below `runs/` in LORATORY_HOME. docs/events.md describes each kind of event.
"""

import sys
from pathlib import Path

import pandas as pd

events = pd.read_json(Path(sys.argv[1]) / "events.jsonl", lines=True)
steps = pd.json_normalize(events.loc[events["kind"] == "step", "data"].tolist()).set_index("step")
evaluations = pd.json_normalize(events.loc[events["kind"] == "eval", "data"].tolist()).set_index("step")

# A resumed run repeats the steps after its checkpoint; the last word counts.
steps = steps[~steps.index.duplicated(keep="last")]
evaluations = evaluations[~evaluations.index.duplicated(keep="last")]

print(steps[["loss", "learning_rate", "tokens_per_second"]].join(evaluations["eval_loss"]).to_string())
print(f"Trained tokens: {steps['trained_tokens'].iloc[-1]:,}")
