"""The space of the model cache that all people of a lab use: what could be removed from it, and its removal on request."""

from collections.abc import Collection
from typing import NamedTuple

from engine.accounts.limits import LabLimits
from engine.errors import ModelError, StorageError

_GB = 10**9


class CachedModel(NamedTuple):
    """A model in the Hub's cache."""

    id: str
    bytes: int
    last_used: float  # seconds since the epoch
    is_in_use: bool  # by a run that waits or is at work


class ModelCache(NamedTuple):
    """What is in the cache, and what is offered for removal.

    Attributes:
        models: Those used least recently first.
        bytes: Of all.
        offered: Ids whose removal brings the cache below its size; those in use are never among them.
    """

    models: tuple[CachedModel, ...]
    bytes: int
    offered: tuple[str, ...]


def look_at_cache(limits: LabLimits, in_use: Collection[str]) -> ModelCache:
    """List the cached models, and choose what to offer for removal; removes nothing.

    Args:
        limits: Has the size of the cache; without one, nothing is offered.
        in_use: Ids of models that runs need which wait or are at work.
    """
    models = tuple(sorted(_cached(in_use), key=lambda model: model.last_used))
    total = sum(model.bytes for model in models)
    excess = total - limits.model_cache_gb * _GB if limits.model_cache_gb is not None else 0
    offered = []
    for model in models:
        if excess > 0 and not model.is_in_use:
            offered.append(model.id)
            excess -= model.bytes
    return ModelCache(models, total, tuple(offered))


def remove_cached_model(model_id: str, in_use: Collection[str]) -> int:
    """Remove a model from the cache, with all its revisions; returns the bytes that this freed.

    Raises:
        ModelError: If it is not in the cache, or a run needs it.
        StorageError: If its files cannot be removed.
    """
    from huggingface_hub import scan_cache_dir

    if model_id in in_use:
        raise ModelError(f"{model_id} is needed by a run that waits or is at work.", "Wait for its end, or stop it.")
    try:
        info = scan_cache_dir()
        found = next((repo for repo in info.repos if repo.repo_type == "model" and repo.repo_id == model_id), None)
        if found is None:
            raise ModelError(f"{model_id[:100]!r} is not in the model cache.", "Choose one that is listed.")
        strategy = info.delete_revisions(*(revision.commit_hash for revision in found.revisions))
        freed = strategy.expected_freed_size
        strategy.execute()
    except OSError as error:
        raise StorageError(
            f"{model_id} cannot be removed ({error.strerror}).", "Check the permissions of the model cache."
        ) from error
    return freed


def _cached(in_use: Collection[str]) -> list[CachedModel]:
    from huggingface_hub import CacheNotFound, scan_cache_dir

    try:
        repos = scan_cache_dir().repos
    except CacheNotFound:
        return []
    return [
        CachedModel(repo.repo_id, repo.size_on_disk, repo.last_accessed, repo.repo_id in in_use)
        for repo in repos
        if repo.repo_type == "model"
    ]
