"""What a run needs is brought to this machine before its job is submitted."""

import pytest

from loratory.engine.data.source import list_samples
from loratory.engine.errors import EngineError
from loratory.engine.places.slurm.fetch import Fetch
from loratory.engine.runs.store import RunStore
from tests.supervision.fake_runs import config_for
from tests.waiting import wait_until


def test_a_run_of_local_files_fetches_nothing(home, tmp_path):
    config = config_for(model={"id": str(tmp_path)}, dataset={"source": list_samples()[0]})

    assert Fetch(RunStore(home, "ann").create(config), config).poll() is None


def test_a_model_that_cannot_be_fetched_ends_the_run_with_the_hubs_words(home, tmp_path):
    config = config_for(model={"id": "nobody/nothing"})
    fetch = Fetch(RunStore(home, "ann").create(config), config)
    errors = []

    def has_failed():
        try:
            assert "Downloading" in fetch.poll()
        except EngineError as error:
            errors.append(error)
        return bool(errors)

    wait_until(has_failed)

    assert "nobody/nothing" in errors[0].what


def test_a_fetch_that_is_given_up_leaves_no_process(home):
    config = config_for(model={"id": "nobody/nothing"})
    fetch = Fetch(RunStore(home, "ann").create(config), config)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("loratory.engine.places.slurm.fetch.worker_argv", lambda *_: ["/bin/sleep", "600"])
        fetch.poll()
    process = fetch._process

    fetch.end()

    assert process.poll() is not None
