"""Training on a version of a set."""

import pytest

from loratory.engine.config.run import DatasetConfig
from loratory.engine.data.source import SetRows, SourceOptions
from loratory.engine.data.workshop.exchange import add_set, export_version
from loratory.engine.data.workshop.sets import find_version
from loratory.engine.training.worker import EXIT_FINISHED
from tests.data.workshop.made_sets import apply, newest
from tests.training.worker_runs import losses_of

pytestmark = pytest.mark.e2e


def test_a_version_has_the_losses_of_its_exported_file(workers, runs, tmp_path):
    config = DatasetConfig(source=str(runs.data))
    add_set(runs.home, "faq", config, author="ann", require_space=lambda _: None)
    row = {"instruction": "What is a rank?", "input": "", "output": "rank alpha"}
    apply(runs.home, {"kind": "exclude", "rows": "2-6"}, {"kind": "edit", "row": 9, "record": row})
    version = f"set:faq@{newest(runs.home)}"
    apply(runs.home, {"kind": "exclude", "rows": "20-30"})  # of a later version
    file = tmp_path / "exported.jsonl"
    export_version(SetRows(find_version(runs.home, version), SourceOptions(home=runs.home)), file)

    pair = [runs.create(dataset={"source": source}, training={"max_steps": 4}) for source in (version, str(file))]

    assert [workers.run(run.folder.path) for run in pair] == [EXIT_FINISHED] * 2
    losses = [losses_of(run) for run in pair]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 4
