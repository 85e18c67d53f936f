"""Where a run forgot, the base model writes general rows once, as a set that the next run can mix in."""

import json
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
from transformers import AutoTokenizer

from loratory.engine.chat.contract import ChatTarget
from loratory.engine.config.results import EvaluationConfig
from loratory.engine.config.run import DatasetConfig
from loratory.engine.data.passes.prepare import prepare_dataset
from loratory.engine.data.render.template import freeze_template
from loratory.engine.data.workshop.sets import find_set, set_names
from loratory.engine.errors import StorageError
from loratory.engine.evaluation.general_text import OPENINGS
from loratory.engine.evaluation.job import (
    EvaluationJob,
    EvaluationRequest,
    read_evaluation,
    read_forgetting,
    replay_name,
)
from loratory.engine.evaluation.worker.main import EvaluationWorker
from loratory.engine.hardware.processor import describe_processor
from loratory.engine.runs.run import RunFolder
from tests.recorded_request import RecordedRequest


@pytest.fixture
def evaluated(home, run, monkeypatch):
    """Evaluate a run in this process, as one that forgot."""
    monkeypatch.setattr("loratory.engine.evaluation.worker.main.FORGOT", -1.0)
    monkeypatch.setattr("loratory.engine.evaluation.job.FORGOT", -1.0)
    monkeypatch.setattr("loratory.engine.evaluation.worker.samples.REPLAY_COPIES", 2)
    requests = []

    @dataclass
    class JobInThisProcess:
        home: object

        def run(self, _method, params, *_):
            requests.append(RecordedRequest())
            return EvaluationWorker(self.home).evaluate(params, requests[-1])

    monkeypatch.setattr(
        "loratory.engine.evaluation.job.DeviceJob", lambda home, *_, **_settings: JobInThisProcess(home)
    )
    settings = EvaluationConfig(answered_rows=0, max_rows=2)
    request = EvaluationRequest(target=ChatTarget.of_run(run), settings=settings)

    def evaluate():
        return EvaluationJob(home, request, choose=lambda _: describe_processor()).run()

    return SimpleNamespace(run=evaluate, requests=requests)


def test_general_rows_are_written_once_and_mixed_with_others(home, run, data, evaluated):
    result = evaluated.run()

    model = RunFolder(run).read_config().model.id
    name = replay_name(model)
    texts = [json.loads(line)["text"] for line in next(find_set(home, name).folder.glob("source/*")).open()]
    tokenizer = AutoTokenizer.from_pretrained(run / "adapter")
    begins = {tokenizer.decode(tokenizer(opening)["input_ids"], skip_special_tokens=True) for opening in OPENINGS}
    assert len(begins) < len(texts) <= 2 * len(OPENINGS)
    assert all(any(text.startswith(begin) for begin in begins) for text in texts)
    assert result.replay == f"set:{name}"
    low, high = result.forgetting_interval
    assert low <= result.forgetting <= high
    assert read_forgetting(run) == (result.forgetting, result.replay, result.replay_tokens)
    assert 0.2 < result.replay_tokens / sum(len(tokenizer(text)["input_ids"]) for text in texts) < 5

    assert evaluated.run().replay == result.replay
    assert any("general rows" in entry["message"] for entry in evaluated.requests[0].progress_log)
    assert not any("general rows" in entry["message"] for entry in evaluated.requests[1].progress_log)

    freeze_template(tokenizer)
    mix = DatasetConfig(source=str(data), eval_fraction=0.0, mix={f"set:{name}": 0.5})
    mixed = prepare_dataset(mix, seed=0, max_length=256, tokenizer=tokenizer, home=home)
    alone = prepare_dataset(mix.model_copy(update={"mix": {}}), seed=0, max_length=256, tokenizer=tokenizer, home=home)
    extra = [row for row in mixed.train if row.labels[1:] == row.input_ids[1:]]
    assert len(mixed.train) - len(alone.train) == len(extra) == pytest.approx(len(texts) / 2, abs=1)


def test_a_result_is_saved_though_no_rows_can_be(home, run, evaluated, monkeypatch):
    def fail(*_):
        raise StorageError("The disk has 1 MB free.", "Free some space.")

    monkeypatch.setattr("loratory.engine.evaluation.job.require_disk_space", fail)

    result = evaluated.run()

    assert result.notes[-1] == "No general rows were saved. The disk has 1 MB free."
    assert result.replay == ""
    assert read_evaluation(run) == result
    assert set_names(home) == []
    assert not list(run.rglob("replay.jsonl"))
