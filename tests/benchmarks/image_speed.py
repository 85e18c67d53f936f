"""Seconds of a step on rows with images, ours against the TRL script that we export: `python -m tests.benchmarks.image_speed`.

Both train the vision demo with LoRA on the same pictures at equal settings, each as a person starts it: `loratory train CONFIG`,
and the file that `loratory script CONFIG` writes. Each trial is a process of its own, in turn. The first two steps do not count.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml
from PIL import Image, ImageDraw

from loratory.engine.paths import LoratoryHome, local_owner
from loratory.engine.runs.history.events import parse_event
from loratory.engine.runs.store import RunStore

WARM_UP_STEPS = 2
COLORS = ("red", "green", "blue", "black")
# In place of what the script does after it has built its trainer.
TIMED = """
import time
from transformers import TrainerCallback
class Clock(TrainerCallback):
    def on_step_end(self, args, state, control, **_):
        print("step", time.time(), flush=True)
trainer.add_callback(Clock)
trainer.train()
"""


def write_rows(folder: Path, count: int) -> Path:
    """Write pictures of one shape each, and rows that ask for its color."""
    rows = []
    for number in range(count):
        color = COLORS[number % len(COLORS)]
        picture = Image.new("RGB", (100 + number % 50, 100), "white")
        ImageDraw.Draw(picture).ellipse((20, 20, 40 + number % 40, 60), fill=color)
        picture.save(folder / f"{number}.png")
        question = {"role": "user", "content": f"<image>What color is shape {number}?"}
        answer = {"role": "assistant", "content": f"It is {color}."}
        rows.append({"messages": [question, answer], "images": [f"{number}.png"]})
    file = folder / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


def seconds_a_step(times: list[float]) -> float:
    return (times[-1] - times[WARM_UP_STEPS - 1]) / (len(times) - WARM_UP_STEPS)


def train_ours(config: Path, home: LoratoryHome) -> float:
    before = set(RunStore(home, local_owner()).ids())
    subprocess.run([sys.executable, "-m", "loratory.engine.cli", "train", str(config)], check=True, capture_output=True)
    store = RunStore(home, local_owner())
    (run_id,) = set(store.ids()) - before
    events = map(parse_event, store.get(run_id).folder.events.read_bytes().splitlines())
    return seconds_a_step([event.time for event in events if event is not None and event.kind == "step"])


def train_script(script: Path) -> float:
    output = subprocess.run(
        [sys.executable, str(script)], check=True, capture_output=True, text=True, cwd=script.parent
    )
    return seconds_a_step([float(line.split()[1]) for line in output.stdout.splitlines() if line.startswith("step ")])


def main() -> int:
    """Print seconds a step of both and their ratio; return 1 where it is below 1.5."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rows", type=int, default=8, help="rows of a pass, which is a step")
    choices = parser.parse_args()
    home = LoratoryHome.from_environment()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        settings = {
            "model": {"id": "smollm2-135m-vision"},
            "dataset": {"source": str(write_rows(folder, 2 * choices.rows)), "eval_fraction": 0.0},
            "training": {
                "max_steps": choices.steps, "per_device_train_batch_size": choices.rows, "gradient_accumulation_steps": 1,
                "max_length": 1024, "eval_steps": choices.steps, "save_steps": choices.steps,
            },
        }  # fmt: skip
        config, script = folder / "config.yaml", folder / "plain.py"
        config.write_text(yaml.safe_dump(settings))
        command = [sys.executable, "-m", "loratory.engine.cli", "script", str(config)]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        script.write_text(text.partition("trainer.train()")[0] + TIMED)
        os.environ["HF_HUB_OFFLINE"] = "1"
        ours, theirs = [], []
        for number in range(choices.rounds):
            ours.append(train_ours(config, home))
            theirs.append(train_script(script))
            print(f"round {number + 1}: ours {ours[-1]:.3f} s a step, TRL {theirs[-1]:.3f} s", flush=True)
            time.sleep(1)
    ratio = statistics.median(theirs) / statistics.median(ours)
    print(
        f"median: ours {statistics.median(ours):.3f} s, TRL {statistics.median(theirs):.3f} s; {ratio:.2f} times as fast"
    )
    return int(ratio < 1.5)


if __name__ == "__main__":
    sys.exit(main())
