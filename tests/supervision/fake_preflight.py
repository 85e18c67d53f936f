from typing import Any

from loratory.engine.config.load import config_from_mapping
from loratory.engine.config.run import RunConfig
from loratory.engine.data.contract import DatasetReport
from loratory.engine.errors import DatasetError, ModelError
from loratory.engine.models.shape import ModelShape
from loratory.engine.models.source import ModelSource
from tests.benchmarks.published.shapes import PublishedSizes, published_shape

SHAPE = published_shape(
    "tiny",
    PublishedSizes(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, vocab_size=400),
)


class FakeInspector:
    """Answers as the inspector process does, and counts how often it was asked."""

    def __init__(self, **report: Any) -> None:
        self.report = report
        self.checks = 0

    def module_inventory(self, model) -> ModelShape:
        return SHAPE

    def check(self, dataset, model=None, max_length=1024, *, seed=42, vision=None, on_progress=None) -> DatasetReport:
        self.checks += 1
        if dataset.source == "missing.jsonl":
            raise DatasetError("missing.jsonl is not there.", "Check the path.")
        values: dict[str, Any] = {
            "source": dataset.source, "fingerprint": "f" * 64, "rows": 10, "kept": 10, "dropped": 0, "train_rows": 9,
            "held_out_rows": 1, "trained_tokens": 500, "kind": "JSON Lines", "format": "alpaca", "format_reason": "",
            "format_sure": True, "columns": ("instruction", "output"), "column_map": {}, "problems": (),
            "problem_counts": {}, "duplicates": 0, **self.report,
        }  # fmt: skip
        return DatasetReport.model_validate(values)


def resolve(config, home, on_progress=None, part=None) -> ModelSource:
    if config.id == "missing/model":
        raise ModelError("missing/model is not on the Hub.", "Check the id.")
    return ModelSource("/models/x", "model", hub_id="some/model", revision="a" * 40)


def config(**sections: dict[str, Any]) -> RunConfig:
    return config_from_mapping({"model": {"id": "some/model"}, "dataset": {"source": "data.jsonl"}, **sections})
