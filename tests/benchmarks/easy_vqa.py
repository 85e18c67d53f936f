"""What the vision demo learns to see: `python -m tests.benchmarks.easy_vqa --wheel easy_vqa-1.0-py3-none-any.whl`.

The rows are those of PyPI's package easy-vqa (`pip download easy-vqa`): a shape of 64 × 64 pixels, a question, an answer of one
word. Every part is a command of Loratory: the demo's random tower and its projector learn as full weights to name the color and
shape of the training pictures; the merged model learns the questions with LoRA; the text model of the same weights learns the
same questions without pictures, for as many steps as both together. Each answers held-out questions, greedily, as a test set.
Exits with 1 unless the model that sees is right more often, with intervals (95%, bootstrap) apart.
"""

import argparse
import json
import random
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from loratory.engine.evaluation.samples import TestResult
from loratory.engine.models.prepared import DEMO_MODEL_ID, DEMO_VISION_ID
from loratory.engine.runs.history.run_history import read_history

SHAPES = {"rectangle", "circle", "triangle"}
COLORS = {"teal", "black", "green", "blue", "gray", "yellow", "red", "brown"}
YES_NO = {"yes", "no"}
TRAINING = {
    "per_device_train_batch_size": 32,
    "gradient_accumulation_steps": 1,
    "max_length": 128,
    "warmup_steps": 20,
    "logging_steps": 20,
    "eval_steps": 100,
}
SHOWN = 8  # answers of the model that sees


def row(question: str, answer: str, image: int | None) -> dict[str, Any]:
    """Return a row as a chat; an empty system turn keeps the template's own away."""
    turns = (("system", ""), ("user", question), ("assistant", answer))
    messages = [{"role": role, "content": text} for role, text in turns]
    return {"messages": messages} | ({} if image is None else {"image": f"images/{image}.png"})


def captions(questions: Iterable[list[Any]]) -> Iterator[dict[str, Any]]:
    """Yield rows of color and shape for the images whose questions, with their answers, give both away."""
    colors: dict[int, str] = {}
    shapes: dict[int, str] = {}
    for question, answer, image in questions:
        terms = set(re.findall(r"[a-z]+", question))
        is_true = answer not in YES_NO or (answer == "yes") != bool(terms & {"not", "no"})
        for facts, kind in ((colors, COLORS), (shapes, SHAPES)):
            if is_true and (terms | {answer}) & kind:
                facts[image] = ((terms | {answer}) & kind).pop()
    for image in sorted(colors.keys() & shapes.keys(), key=lambda image: random.Random(image).random()):
        yield row("?", f"{colors[image]} {shapes[image]}", image)


def write_rows(wheel: Path, folder: Path, count: int) -> Path:
    """Unpack the wheel and write its rows as files; returns the folder of the training's and the test's."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    data = folder / "easy_vqa" / "data"
    for split, most in (("train", None), ("test", count)):
        questions = json.loads((data / split / "questions.json").read_text())
        random.Random(0).shuffle(questions)
        files = {
            "captions": captions(questions),
            "questions": (row(*question) for question in questions[:most]),
            "text": (row(question, answer, None) for question, answer, _ in questions[:most]),
        }
        for name, rows in files.items():
            (data / split / f"{name}.jsonl").write_text("".join(json.dumps(values) + "\n" for values in rows))
    return data


def loratory(*arguments: str) -> str:
    command = [sys.executable, "-m", "loratory.engine.cli", *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def train(name: str, config: Mapping[str, Any], steps: int, folder: Path) -> str:
    """Train with a configuration, print minutes and the held-out losses of every 100 steps, and return the run's id."""
    training = TRAINING | {"max_steps": steps, "learning_rate": 1e-3 if "tower" in config["vision"] else 5e-4}
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump({**config, "adapter": {"r": 16, "lora_alpha": 32}, "training": training}))
    result = json.loads(loratory("train", str(file), "--json"))
    history = read_history(Path(result["directory"]) / "events.jsonl")
    curve = " ".join(f"{point.eval_loss:.3f}" for point in history.tuned_evals)
    print(f"{name}: {steps} steps in {result['seconds'] / 60:.1f} minutes, held-out loss {curve}", flush=True)
    return str(result["run_id"])


def score(name: str, run: str) -> tuple[float, float]:
    """Let a run answer its test set, print score, McNemar's p and answers, and return the interval."""
    arguments = ("--rows", "50", "--answers", "0", "--no-forgetting", "--json")
    result = TestResult.model_validate(json.loads(loratory("evaluate", run, *arguments))["tests"][0])
    print(f"{name}: base {result.branches['base'].text}, tuned {result.branches['tuned'].text}, p {result.p_words}")
    worst_first = result.prompts["tuned"]
    for prompt in worst_first[:: max(1, len(worst_first) // SHOWN)]:
        print(f"    {prompt.prompt!r}: {prompt.answers[0].text!r} for {prompt.reference!r}", flush=True)
    return result.branches["tuned"].interval


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheel", type=Path, required=True)
    parser.add_argument("--questions", type=int, default=1_000, help="held out")
    parser.add_argument("--caption-steps", type=int, default=700, help="of tower and projector as full weights")
    parser.add_argument("--question-steps", type=int, default=400, help="of LoRA alone, after these")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root)
        data = write_rows(options.wheel, folder, options.questions)

        def config(model: str, rows: str, **vision: str) -> dict[str, Any]:
            test = data / "test" / f"{rows}.jsonl"
            tests = {"source": str(test), "scorers": [{"scorer": "equals"}], "max_rows": 1_000, "max_new_tokens": 6}
            return {
                "model": {"id": model},
                "dataset": {"source": str(data / "train" / f"{rows}.jsonl"), "eval_fraction": 0.01},
                "vision": {"do_image_splitting": False, **vision},
                "evaluation": {"tests": [] if rows == "captions" else [tests]},
            }

        seeing = config(DEMO_VISION_ID, "captions", tower="full", projector="full")
        captions_run = train("captions", seeing, options.caption_steps, folder)
        merged = folder / "merged"
        loratory("export", captions_run, "--to", "merged", "--out", str(merged))
        sees = train("questions", config(str(merged), "questions"), options.question_steps, folder)
        steps = options.caption_steps + options.question_steps
        reads = train("text", config(DEMO_MODEL_ID, "text"), steps, folder)
        return int(score("With pictures", sees)[0] <= score("Text only", reads)[1])


if __name__ == "__main__":
    sys.exit(main())
