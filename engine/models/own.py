"""Gated and private models that a person of a lab fetches with a token of their own, into a cache that only they use.

The token is in the memory of the page and of one process, which gets it through its stdin, and is in no file. Runs, chats and
exports of that person find the model without it.
"""

import contextlib
import os
import shutil
import threading
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import NamedTuple

from pydantic import SecretStr

from engine.accounts.logins import require_token
from engine.config.run import ModelConfig
from engine.errors import AccountError, ModelError, StorageError
from engine.models.cache_space import NEEDS
from engine.models.catalog import find_in_catalog
from engine.models.prepared import ModelProgress, OnModelProgress, ignore_progress
from engine.models.source import is_hub_id, is_revision
from engine.paths import LoratoryHome
from engine.processes.json_lines import JsonLinesProcess
from engine.processes.messages import JsonObject
from engine.runs.disk import require_disk_space
from engine.runs.store import folder_size_bytes

WORKER_MODULE = "engine.models.own_download"

_MODELS = "models--"


class OwnModel(NamedTuple):
    """A model in a person's own cache."""

    hub_id: str
    bytes: int
    revision: str | None = None  # that was asked for


@dataclass(eq=False)
class TokenDownload:
    """One download; can be stopped from another thread, and what has arrived serves the next one."""

    home: LoratoryHome  # as the person has it
    token: SecretStr = field(repr=False)  # of the person, for this one download
    _stop_requested: threading.Event = field(default_factory=threading.Event, init=False)

    def stop(self) -> None:
        """End it within seconds."""
        self._stop_requested.set()

    def _download(self, module: str, params: JsonObject, on_progress: OnModelProgress) -> None:
        """Let a process download something; it gets the token through stdin, and has no other login.

        Raises:
            AccountError: If there are no accounts, or that is not a token.
            StorageError: If the person has no disk space left.
            CancelledRequestError: If it was stopped.
            WorkerError: If the process ended.
            EngineError: As the process raises it.
        """
        home, secret, self.token = self.home, self.token.get_secret_value(), SecretStr("")
        if not home.owner:
            raise AccountError("This Loratory has no accounts.", "Log in with `hf auth login` or HF_TOKEN.")
        secret = require_token(secret, "read access")
        require_disk_space(home, home.owner)
        home.own_models.joinpath("hub").mkdir(mode=0o700, parents=True, exist_ok=True)
        process = JsonLinesProcess(
            module, log_file=home.logs / "own-models.log", environment=_environment(home), restarts=False
        )

        def report(value: JsonObject) -> None:
            on_progress(ModelProgress(**value))

        try:
            process.call("download", {**params, "token": secret}, on_progress=report, stopped=self._stop_requested)
        finally:
            process.close(timeout_seconds=0.5)


@dataclass(eq=False)
class OwnModelJob(TokenDownload):
    """Download a model."""

    model: ModelConfig  # on the Hub, by id or as the catalogue names it

    def run(self, on_progress: OnModelProgress = ignore_progress) -> OwnModel:
        """Fetch configuration, tokenizer and weights.

        Raises:
            ModelError: If it is not on the Hub, the token does not open it, or it cannot be trained safely.
            AccountError: If there are no accounts, or that is not a token.
            StorageError: If it exceeds the person's disk space.
            HubUnreachableError: If the Hub does not answer.
            CancelledRequestError: If it was stopped.
            WorkerError: If the process ended.
        """
        hub_id = hub_id_of(self.model)
        self._download(WORKER_MODULE, {"hub_id": hub_id, "revision": self.model.revision}, on_progress)
        size = folder_size_bytes(self.home.own_models / "hub" / _folder_name(hub_id))
        return OwnModel(hub_id, size, self.model.revision)


def hub_id_of(model: ModelConfig) -> str:
    """Return the id of a model on the Hub.

    Raises:
        ModelError: If that is not a name of one, or not a revision.
    """
    text = model.id.strip()
    entry = find_in_catalog(text)
    hub_id = entry.hub_id if entry is not None else text
    if not is_hub_id(hub_id):
        raise ModelError(f"{text[:100]!r} is not an id on the Hub.", "An id reads owner/name, as in its address.")
    if model.revision is not None and not is_revision(model.revision):
        raise ModelError(
            f"{model.revision[:100]!r} cannot be a revision.", "Name a branch, a tag or a commit of the model."
        )
    return hub_id


def list_own_models(home: LoratoryHome) -> list[OwnModel]:
    """Return the models in the own cache of a home's person, by id."""
    own, models = home.own_hub_cache, []
    with contextlib.suppress(OSError):
        for path in sorted(own.iterdir()) if own is not None else ():
            if path.name.startswith(_MODELS) and path.is_dir():
                hub_id = path.name.removeprefix(_MODELS).replace("--", "/")
                models.append(OwnModel(hub_id, folder_size_bytes(path)))
    return models


def remove_own_model(home: LoratoryHome, hub_id: str, in_use: Collection[str]) -> None:
    """Remove a model from the own cache of a home's person.

    Args:
        in_use: Ids of the models that their runs, chats, evaluations and exports need.

    Raises:
        ModelError: If it is not there, or is needed.
        StorageError: If its files cannot be removed.
    """
    own = home.own_hub_cache
    if own is None or hub_id not in [model.hub_id for model in list_own_models(home)]:
        raise ModelError("That model is not among your own.", "Choose one that is listed.")
    if hub_id in in_use:
        raise ModelError(f"{hub_id} is needed by {NEEDS}.", "Wait for its end, or stop it.")
    try:
        shutil.rmtree(own / _folder_name(hub_id))
    except OSError as error:
        raise StorageError(f"{hub_id} cannot be removed ({error.strerror}).", "Ask an admin of the lab.") from error


def _folder_name(hub_id: str) -> str:
    return _MODELS + hub_id.replace("/", "--")


def _environment(home: LoratoryHome) -> dict[str, str]:
    """Return variables by which nothing that the Hub's libraries keep is outside the person's own folder."""
    own = str(home.own_models)
    caches = {"HF_HUB_CACHE": f"{own}/hub", "HUGGINGFACE_HUB_CACHE": f"{own}/hub", "HF_XET_CACHE": f"{own}/xet"}
    quiet = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_VERBOSITY": "error"}
    return {**home.environment, "HF_HOME": own, **caches, **quiet, "HF_TOKEN_PATH": os.devnull}
