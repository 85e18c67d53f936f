"""A tiny run with held-out rows, and its evaluation in this process."""

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from loratory.engine.chat.contract import ChatTarget
from loratory.engine.chat.target import plan_load
from loratory.engine.config.results import EvaluationConfig
from loratory.engine.data.passes.prepare import prepare_dataset
from loratory.engine.data.render.template import freeze_template
from loratory.engine.evaluation.job import (
    EvaluationOrder,
    EvaluationResult,
)
from loratory.engine.evaluation.worker.main import EvaluationWorker
from loratory.engine.hardware.processor import describe_processor
from loratory.engine.runs.run import RunFolder
from tests.chat.tiny_adapters import lora, write_trained_run
from tests.recorded_request import RecordedRequest
from tests.tiny_model import make_tiny_model


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("eval") / "base", tie_word_embeddings=False, initializer_range=0.4)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("data") / "rows.jsonl"
    rows = [
        {"instruction": f"What is {number} and one?", "output": f"It is {number + 1}, the number after {number}."}
        for number in range(40)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture(scope="module")
def run(base, data, tmp_path_factory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "run", base, data, lora())


def write_run(folder: Path, base: Path, data: Path, adapter_config: object, method: str = "lora", **model: Any) -> Path:
    return write_trained_run(
        folder,
        base,
        adapter_config,
        model={"compute_dtype": "float32", **model},
        dataset={"source": str(data), "eval_fraction": 0.2},
        adapter={"method": method, "num_virtual_tokens": 5},
        training={"max_length": 256},
    )


def order_of(run: Path, device=None, **settings: Any) -> EvaluationOrder:
    values = {"answered_rows": 0, "max_new_tokens": 8, "general_text": False, **settings}
    return EvaluationOrder(
        plan=plan_load(ChatTarget.of_run(run)),
        run=RunFolder(run).read_config(),
        settings=EvaluationConfig(**values),
        device=device or describe_processor(),
        folder=Path(tempfile.mkdtemp()),  # so nothing is known from a test before
    )


def evaluate(home, order: EvaluationOrder, request=None) -> EvaluationResult:
    answer = EvaluationWorker(home).evaluate(order.model_dump(mode="json"), request or RecordedRequest())
    return EvaluationResult.model_validate(answer["result"])


def held_out(run: Path, home, order: EvaluationOrder, objective=None):
    tokenizer = AutoTokenizer.from_pretrained(run / "adapter")
    freeze_template(tokenizer)
    training = order.run.training
    return prepare_dataset(
        order.run.dataset, seed=training.seed, max_length=training.max_length, tokenizer=tokenizer, home=home,
        objective=objective,
    ).held_out  # fmt: skip
