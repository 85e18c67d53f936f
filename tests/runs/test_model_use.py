"""Which runs need which model."""

import pytest

from engine.models.cache_space import ModelUse
from engine.runs.model_use import model_uses
from engine.runs.provenance import Provenance
from engine.runs.store import RunStore
from tests.invented_runs import InventedRun, a_config, write_run


def test_runs_that_wait_or_are_at_work_need_their_model_and_ended_ones_used_it(home):
    source = Provenance(model_source="org/model")
    stores = [RunStore(home, owner, clock=lambda: 1_700_000_000.0) for owner in ("ann", "bob")]
    waiting, ended = stores[0].create(a_config(), source), stores[1].create(a_config(), source)
    ended.folder.write_state(ended.folder.read_state().model_copy(update={"state": "completed"}))

    assert model_uses(home) == {"org/model": ModelUse(1_700_000_000.0, 2, (f"ann/{waiting.id}",))}


def test_a_run_with_a_missing_state_keeps_its_model(home):
    run = RunStore(home, "ann").create(a_config(), Provenance(model_source="org/model"))
    run.folder.write_state(run.folder.read_state().model_copy(update={"state": "completed"}))
    assert model_uses(home)["org/model"].needed_by == ()
    run.folder.state.unlink()

    assert model_uses(home)["org/model"].needed_by == (f"ann/{run.id}",)


@pytest.mark.parametrize("state", ["completed", "queued"])
def test_a_run_whose_model_is_not_from_the_hub_needs_nothing_there(home, state):
    write_run(RunStore(home, "ann"), a_config(), InventedRun(state=state))
    assert model_uses(home) == {}
