"""What is offered for removal from the model cache, and what stays."""

import os
import shutil
import time

import pytest

from loratory.engine.accounts.limits import LabLimits
from loratory.engine.errors import ModelError
from loratory.engine.models.cache_space import ModelUse, remove_cached_model, scan_model_cache

MB = 10**6
NEEDED = {"org/oldest": ModelUse(last=0.0, runs=3, needed_by=("ann/20261101-000000-000-abcd",))}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Three models of 1 MB each; the first one was used last."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.utils._cache_manager.HF_HUB_CACHE", str(tmp_path), raising=False)
    for age, name in enumerate(("newest", "middle", "oldest")):
        repo = tmp_path / f"models--org--{name}"
        commit = f"{age}" * 40
        blob = repo / "blobs" / "weights"
        blob.parent.mkdir(parents=True)
        blob.write_bytes(bytes(MB))
        snapshot = repo / "snapshots" / commit
        snapshot.mkdir(parents=True)
        (snapshot / "model.safetensors").symlink_to(blob)
        (repo / "refs").mkdir()
        (repo / "refs" / "main").write_text(commit)
        moment = time.time() - age * 86_400
        os.utime(blob, (moment, moment))
    return tmp_path


def limits(megabytes: float | None) -> LabLimits:
    return LabLimits(model_cache_gb=None if megabytes is None else megabytes / 1000)


def test_the_models_used_least_recently_are_offered_until_the_rest_fits(cache):
    result = scan_model_cache(limits(1.5), {})

    assert [model.id for model in result.models] == ["org/oldest", "org/middle", "org/newest"]
    assert result.bytes == pytest.approx(3 * MB, rel=0.01)
    assert result.removable == ("org/oldest", "org/middle")
    assert all(path.exists() for path in cache.glob("*/blobs/weights")), "nothing is removed by looking"


def test_a_model_that_a_run_needs_is_neither_offered_nor_removed(cache):
    assert scan_model_cache(limits(1.5), NEEDED).removable == ("org/middle", "org/newest")
    with pytest.raises(ModelError, match="needed by a run"):
        remove_cached_model("org/oldest", in_use={"org/oldest"})


def test_a_run_made_with_a_model_counts_as_its_last_use(cache):
    """A file system without access times would let the model of yesterday's runs go first."""
    used = scan_model_cache(limits(1.5), {"org/oldest": ModelUse(last=time.time(), runs=1)})

    assert [model.id for model in used.models] == ["org/middle", "org/newest", "org/oldest"]
    assert used.removable == ("org/middle", "org/newest")
    assert used.most_bytes == pytest.approx(1.5 * MB)


def test_without_a_limit_nothing_is_offered(cache):
    assert scan_model_cache(limits(None), {}).removable == ()


def test_a_model_is_removed_on_request_and_the_others_stay(cache):
    assert remove_cached_model("org/middle", in_use=()) == pytest.approx(MB, rel=0.01)

    assert [model.id for model in scan_model_cache(limits(None), {}).models] == ["org/oldest", "org/newest"]


def test_a_model_under_another_name_with_the_same_commits_stays(cache):
    """As after a repository was renamed on the Hub."""
    shutil.copytree(cache / "models--org--newest", cache / "models--org--renamed", symlinks=True)
    remove_cached_model("org/renamed", in_use={"org/newest"})

    assert "org/newest" in [model.id for model in scan_model_cache(limits(None), {}).models]


@pytest.mark.parametrize("name", ["org/other", "../../etc", "datasets--org--newest", ""])
def test_what_is_not_in_the_cache_is_not_removed(cache, name):
    with pytest.raises(ModelError, match="is not in the model cache"):
        remove_cached_model(name, in_use=())
