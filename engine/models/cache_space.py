"""The space of the model cache that all people of a lab use: what could be removed from it, and its removal on request."""

import shutil
from collections.abc import Collection, Mapping
from typing import NamedTuple

from loratory.engine.accounts.limits import LabLimits
from loratory.engine.errors import ModelError, explain_os_errors

NEEDS = "a run that waits or is at work, or by a chat, an evaluation or an export"
_GB = 10**9


class ModelUse(NamedTuple):
    """What all people make of a model."""

    last: float = 0.0  # when the newest of them was made, in seconds since the epoch
    runs: int = 0  # how many there are
    # Runs that wait or are at work as `owner/run-id`, and what else reads it now as `owner/purpose`.
    needed_by: tuple[str, ...] = ()


class CachedModel(NamedTuple):
    """A model in the Hub's cache."""

    id: str  # on the Hub
    bytes: int  # of all its revisions
    last_used: float  # when its files were read or a run was made with it, in seconds since the epoch
    use: ModelUse


class ModelCache(NamedTuple):
    """What is in the cache, and what is offered for removal."""

    models: tuple[CachedModel, ...]  # those used least recently first
    bytes: int
    removable: tuple[str, ...]  # ids whose removal brings the cache below its size; never those that runs need
    most_bytes: float | None  # its size as the lab limits it; None without a limit


def scan_model_cache(limits: LabLimits, uses: Mapping[str, ModelUse]) -> ModelCache:
    """List the cached models, and choose what to offer for removal by the limit of the cache; removes nothing.

    `uses` has those of models by runs, by id.
    """
    models = tuple(sorted(_list_cached(uses), key=lambda model: model.last_used))
    total = sum(model.bytes for model in models)
    most = None if limits.model_cache_gb is None else limits.model_cache_gb * _GB
    excess = 0.0 if most is None else total - most
    removable = []
    for model in models:
        if excess > 0 and not model.use.needed_by:
            removable.append(model.id)
            excess -= model.bytes
    return ModelCache(models, total, tuple(removable), most)


def remove_cached_model(model_id: str, in_use: Collection[str]) -> int:
    """Remove a model from the cache, with all its revisions; returns the bytes that this freed.

    Raises:
        ModelError: If it is not in the cache, or is needed.
        StorageError: If its files cannot be removed.
    """
    from huggingface_hub import scan_cache_dir

    if model_id in in_use:
        raise ModelError(f"{model_id} is needed by {NEEDS}.", "Wait for its end, or stop it.")
    with explain_os_errors(f"{model_id} cannot be removed", "Check the permissions of the model cache."):
        model = next(
            (repo for repo in scan_cache_dir().repos if repo.repo_type == "model" and repo.repo_id == model_id), None
        )
        if model is None:
            raise ModelError(f"{model_id[:100]!r} is not in the model cache.", "Choose one that is listed.")
        # Not by `delete_revisions`: a renamed repository has the same commits under two names, and it takes either.
        shutil.rmtree(model.repo_path)
    return model.size_on_disk


def _list_cached(uses: Mapping[str, ModelUse]) -> list[CachedModel]:
    from huggingface_hub import CacheNotFound, scan_cache_dir

    try:
        repos = scan_cache_dir().repos
    except CacheNotFound:
        return []
    models = []
    for repo in repos:
        if repo.repo_type == "model":
            use = uses.get(repo.repo_id, ModelUse())
            # File systems note reads once a day at most, or never.
            models.append(CachedModel(repo.repo_id, repo.size_on_disk, max(repo.last_accessed, use.last), use))
    return models
