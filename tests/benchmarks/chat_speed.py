"""How fast the chat answers, against plain `generate`: `python -m tests.benchmarks.chat_speed`.

Both run in processes of their own and take turns, so whatever else the machine does hits both equally. Uses the demo
model from the Loratory home (or `--model FOLDER`) and a LoRA of rank 16 on all linear layers with random weights.
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from loratory.engine.chat.contract import AdapterChoice, ChatRequest, ChatTarget
from loratory.engine.chat.session import ChatSession
from loratory.engine.config.results import SamplingConfig
from loratory.engine.config.run import ModelConfig
from loratory.engine.data.conversation import Message
from loratory.engine.models.source import resolve_model
from loratory.engine.paths import LoratoryHome
from loratory.engine.processes.json_lines import JsonLinesProcess
from tests.chat.tiny_adapters import lora, make_adapter

ROOT = Path(__file__).resolve().parents[2]
MESSAGES = (Message("user", "Explain in a few sentences how low-rank adaptation changes a language model. " * 4),)


def main() -> None:
    """Print one line for each figure, as soon as it is known."""
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    home = LoratoryHome.from_environment()
    base = ModelConfig(id=options.model)
    folder = Path(resolve_model(base, home).location)
    with tempfile.TemporaryDirectory() as scratch:
        adapter = make_adapter(folder, Path(scratch) / "lora", lora(r=16, lora_alpha=32, target_modules="all-linear"))
        session = ChatSession(home)
        try:
            print_speed(session, base, folder, adapter, options)
        finally:
            session.unload()


def print_speed(
    session: ChatSession, base: ModelConfig, folder: Path, adapter: Path, options: argparse.Namespace
) -> None:
    """First token and tokens per second, ours and plain, base alone and with the adapter."""
    sampling = SamplingConfig(temperature=0, max_new_tokens=options.tokens)
    for branch, trained in (("base", None), ("tuned", adapter)):
        chat_model = session.load(ChatTarget(model=base, tuned=AdapterChoice(folder=trained) if trained else None))
        plain = JsonLinesProcess(
            "tests.benchmarks.plain_generate",
            log_file=Path(tempfile.gettempdir()) / "loratory-plain-generate.log",
            arguments=(str(folder), str(trained or ""), chat_model.dtype),
            environment={"PYTHONPATH": str(ROOT)},
        )
        try:
            ids = session.prompt(MESSAGES).ids
            request = ChatRequest(messages=MESSAGES, branches=(branch,), sampling=sampling)
            ours, theirs = [], []
            for round_number in range(options.rounds + 1):
                *_, chunk = session.stream(request)
                answer = plain.call("generate", {"ids": list(ids), "tokens": chunk.tokens})
                if round_number:  # the first round warms both up
                    ours.append((chunk.first_token_seconds, chunk.tokens_per_second))
                    theirs.append((answer["first_token_seconds"], answer["tokens_per_second"]))
        finally:
            plain.close()
        print(
            f"{branch}: {len(ids)} prompt tokens, {options.tokens} answered, {chat_model.dtype} on {chat_model.device}"
        )
        for number, name in enumerate(("first token, ms", "tokens per second")):
            scale = 1000 if number == 0 else 1
            mine = [scale * pair[number] for pair in ours]
            other = [scale * pair[number] for pair in theirs]
            ratio = statistics.median(a / b for a, b in zip(mine, other, strict=True))
            print(f"  {name:18} chat {spread_words(mine)}   generate {spread_words(other)}   ratio {ratio:.3f}")


def spread_words(values: Sequence[float]) -> str:
    """Median with minimum and maximum."""
    return f"{statistics.median(values):7.1f} ({min(values):.1f}–{max(values):.1f})"


if __name__ == "__main__":
    main()
