"""What an admin does with runs and with the models of the cache."""

import pytest

from loratory.engine.errors import ModelError, RunError
from loratory.engine.lab.fairness import UrgentSlot
from loratory.engine.runs.provenance import Provenance
from loratory.engine.runs.store import RunStore
from loratory.ui.views.lab import (
    models_question,
    render_cache,
)
from tests.invented_runs import InventedRun, a_config, write_run
from tests.ui.front.lab_admin import audit_entries, waiting_runs


def test_a_run_of_another_is_stopped_and_logged(admin, caller):
    run = write_run(RunStore(admin.home, "ann"), a_config(), InventedRun(state="queued"))
    admin.stop(caller, f"ann/{run.id}")

    assert run.folder.stop_request.exists()
    assert audit_entries(admin) == [("root", "run stopped", f"ann/{run.id}", "", "10.0.0.1")]


@pytest.mark.parametrize(
    "name", ["", "ann", "ann/", "/", "../ann/{id}", "ann/../ann/{id}", "bea/{id}", "ann/{short}", "ann/x\0"]
)
def test_a_run_that_is_not_there_is_not_stopped(admin, caller, name):
    run = write_run(RunStore(admin.home, "ann"), a_config(), InventedRun(state="queued"))
    with pytest.raises(RunError):
        admin.stop(caller, name.format(id=run.id, short=run.id[-4:]))
    assert not run.folder.stop_request.exists()
    assert audit_entries(admin) == []


def test_a_run_is_made_urgent_and_everyone_reads_by_whom_and_why(admin, caller):
    first, second = waiting_runs(admin, "ann", "bea")
    admin.make_urgent(caller, f"bea/{second.id}", " paper deadline\non Friday\x1b ")

    assert UrgentSlot(admin.home).run().run_id == second.id
    reasons = [entry.urgent for entry in admin.board.entries(admin.accounts.person("ann"))]
    assert reasons == ["", "Goes first: root made it urgent (paper deadline on Friday)."]
    with pytest.raises(RunError, match="urgent already"):
        admin.make_urgent(caller, f"ann/{first.id}", "")

    admin.clear_urgent(caller)
    admin.clear_urgent(caller)
    assert UrgentSlot(admin.home).run() is None
    assert [(kind, subject) for _, kind, subject, _, _ in audit_entries(admin)] == [("urgent", f"bea/{second.id}")] * 2
    assert [detail for *_, detail, _ in audit_entries(admin)][1] == "no longer"


def test_only_a_run_that_waits_becomes_urgent(admin, caller):
    run = write_run(RunStore(admin.home, "ann"), a_config(), InventedRun(state="completed"))
    for name in (f"ann/{run.id}", "ann/20261101-000000-000-abcd", "../ann", ""):
        with pytest.raises(RunError):
            admin.make_urgent(caller, name, "")
    assert UrgentSlot(admin.home).run() is None
    assert audit_entries(admin) == []


@pytest.fixture
def cached_models(tmp_path, monkeypatch):
    """Two models of 1 MB in the cache."""
    cache = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.utils._cache_manager.HF_HUB_CACHE", str(cache), raising=False)
    for name in ("busy", "free"):
        snapshot = cache / f"models--org--{name}" / "snapshots" / ("a" * 40)
        snapshot.mkdir(parents=True)
        (snapshot / "model.safetensors").write_bytes(bytes(10**6))
    return cache


def test_a_model_that_a_waiting_run_needs_stays_whatever_a_client_sends(admin, caller, cached_models):
    RunStore(admin.home, "ann").create(a_config(), Provenance(model_source="org/busy"))
    admin.save_limits(caller, {"model_cache_gb": 0.0001})
    cache = admin.models()

    assert cache.removable == ("org/free",)
    html = render_cache(cache)
    assert "needed by ann" in html
    assert 'data-pick="model:org/free"' in html
    assert 'data-pick="model:org/busy"' not in html
    with pytest.raises(ModelError, match="needed by a run"):
        admin.remove_models(caller, ["org/busy"])
    assert "frees 1.0 MB" in models_question(cache.removable, cache)
    assert admin.remove_models(caller, cache.removable) == 10**6
    assert [model.id for model in admin.models().models] == ["org/busy"]
    assert audit_entries(admin)[1:] == [("root", "model removed", "org/free", "", "10.0.0.1")]


@pytest.mark.parametrize("ids", [[], ["org/other"], ["../../etc"]])
def test_what_is_not_in_the_cache_is_not_removed(admin, caller, cached_models, ids):
    with pytest.raises(ModelError):
        admin.remove_models(caller, ids)
    assert len(admin.models().models) == 2
    assert audit_entries(admin) == []
