"""Gated and private models and datasets that a person of a lab downloads from the Hub with a token of their own, for them alone.

The token is in the memory of the page and of one process (this module, run as a program), which gets it through its stdin,
and is in no file. A model goes to a cache that only that person uses, a dataset's data files to their uploads: their runs,
chats and exports need no token.
"""

import contextlib
import os
import shutil
import threading
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

from pydantic import SecretStr

from loratory.engine.accounts.people import require_token
from loratory.engine.data.files import kind_of
from loratory.engine.data.files.access import shown_name
from loratory.engine.errors import AccountError, DatasetError, EngineError, ModelError, explain_os_errors
from loratory.engine.hub import DATASET
from loratory.engine.models.cache_space import NEEDS
from loratory.engine.models.catalog import find_in_catalog
from loratory.engine.models.prepared import ModelProgress, OnModelProgress, ignore_progress
from loratory.engine.models.source import is_hub_id, is_revision
from loratory.engine.paths import LoratoryHome
from loratory.engine.processes.json_lines import JsonLinesProcess
from loratory.engine.processes.messages import JsonObject, Request, serve
from loratory.engine.runs.disk import require_disk_space
from loratory.engine.runs.store import folder_size_bytes

WORKER_MODULE = "loratory.engine.private_hub"
PrivateKind = Literal["model", "dataset"]

_ERRORS: dict[PrivateKind, type[EngineError]] = {"model": ModelError, "dataset": DatasetError}
_PREFIXES: dict[PrivateKind, str] = {"model": "models--", "dataset": ""}  # of folders; that of models is the Hub's
_SEPARATOR = "--"  # in the names of folders, for the slash of an id
_MOST_FILES = 4096
_TIMEOUT_SECONDS = 30.0


class PrivateCopy(NamedTuple):
    """A model or dataset that a person downloaded."""

    hub_id: str
    bytes: int
    folder: Path  # by which a dataset is opened
    revision: str | None = None  # that was asked for


@dataclass(eq=False)
class PrivateDownload:
    """One download; can be stopped from another thread, and what has arrived serves the next one."""

    home: LoratoryHome  # as the person has it
    kind: PrivateKind
    hub_id: str  # on the Hub, as owner/name; a model's may be the catalogue's name
    revision: str | None  # branch, tag or commit; None for the default branch
    token: SecretStr = field(repr=False)  # of the person, for this one download
    _stop_requested: threading.Event = field(default_factory=threading.Event, init=False)

    def run(self, on_progress: OnModelProgress = ignore_progress) -> PrivateCopy:
        """Download all of a model, or the data files of a dataset, in a process that has no other login.

        Raises:
            ModelError: If the model is not on the Hub, the token does not open it, or it cannot be trained safely.
            DatasetError: If the dataset is not on the Hub, the token does not open it, or it has no data files.
            AccountError: If there are no accounts, or that is not a token.
            StorageError: If it exceeds the person's disk space.
            HubUnreachableError: If the Hub does not answer.
            CancelledRequestError: If it was stopped.
            WorkerError: If the process ended.
        """
        hub_id = require_private_id(self.kind, self.hub_id, self.revision)
        home, secret, self.token = self.home, self.token.get_secret_value(), SecretStr("")
        if not home.owner:
            raise AccountError("This Loratory has no accounts.", "Log in with `hf auth login` or HF_TOKEN.")
        secret = require_token(secret, "read access")
        require_disk_space(home, home.owner)
        home.own_models.joinpath("hub").mkdir(mode=0o700, parents=True, exist_ok=True)
        process = JsonLinesProcess(
            WORKER_MODULE, log_file=home.logs / "own-models.log", environment=_environment(home), restarts=False
        )
        folder = _folder(home, self.kind, hub_id)
        params = {"hub_id": hub_id, "revision": self.revision, "folder": str(folder), "token": secret}
        try:
            process.call(
                self.kind,
                params,
                on_progress=lambda value: on_progress(ModelProgress(**value)),
                stopped=self._stop_requested,
            )
        finally:
            process.close(timeout_seconds=0.5)
        return PrivateCopy(hub_id, folder_size_bytes(folder), folder, self.revision)

    def stop(self) -> None:
        """End it within seconds."""
        self._stop_requested.set()


def require_private_id(kind: PrivateKind, text: str, revision: str | None = None) -> str:
    """Return the id of a model or dataset on the Hub.

    Raises:
        ModelError: If that is not a name of a model, or not a revision.
        DatasetError: The same of a dataset.
    """
    entry = find_in_catalog(text.strip()) if kind == "model" else None
    hub_id = entry.hub_id if entry is not None else text.strip()
    if not is_hub_id(hub_id):
        what = f"{shown_name(text)!r} is not an id on the Hub."
        raise _ERRORS[kind](what, "An id reads owner/name, as in its address.")
    if revision is not None and not is_revision(revision):
        what = f"{shown_name(revision)!r} cannot be a revision."
        raise _ERRORS[kind](what, f"Name a branch, a tag or a commit of the {kind}.")
    return hub_id


def list_private(home: LoratoryHome, kind: PrivateKind) -> list[PrivateCopy]:
    """Return what a home's person downloaded, by id."""
    copies, prefix = [], _PREFIXES[kind]
    with contextlib.suppress(OSError):
        for path in sorted(_root(home, kind).iterdir()) if home.owner else ():
            if path.name.startswith(prefix) and path.is_dir() and not path.is_symlink():
                hub_id = path.name.removeprefix(prefix).replace(_SEPARATOR, "/")
                copies.append(PrivateCopy(hub_id, folder_size_bytes(path), path))
    return copies


def remove_private(home: LoratoryHome, kind: PrivateKind, hub_id: str, in_use: Collection[str] = ()) -> None:
    """Remove what a home's person downloaded.

    Args:
        in_use: Ids of the models that their runs, chats, evaluations and exports need; or sources of their runs' datasets.

    Raises:
        ModelError: If the model is not there, or is needed.
        DatasetError: If the dataset is not there, or is needed.
        StorageError: If its files cannot be removed.
    """
    folder = next((copy.folder for copy in list_private(home, kind) if copy.hub_id == hub_id), None)
    if folder is None:
        raise _ERRORS[kind](f"That {kind} is not among your own.", "Choose one that is listed.")
    if hub_id in in_use if kind == "model" else any(Path(source).is_relative_to(folder) for source in in_use):
        raise _ERRORS[kind](f"{hub_id} is needed by {NEEDS}.", "Wait for its end, or stop it.")
    with explain_os_errors(f"{hub_id} cannot be removed", "Ask an admin of the lab."):
        shutil.rmtree(folder)


def _root(home: LoratoryHome, kind: PrivateKind) -> Path:
    return (home.own_models if kind == "model" else home.uploads) / "hub"


def _folder(home: LoratoryHome, kind: PrivateKind, hub_id: str) -> Path:
    return _root(home, kind) / f"{_PREFIXES[kind]}{hub_id.replace('/', _SEPARATOR)}"


def _environment(home: LoratoryHome) -> dict[str, str]:
    """Return variables by which nothing that the Hub's libraries keep is outside the person's own folder."""
    own = str(home.own_models)
    caches = {"HF_HUB_CACHE": f"{own}/hub", "HUGGINGFACE_HUB_CACHE": f"{own}/hub", "HF_XET_CACHE": f"{own}/xet"}
    quiet = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_VERBOSITY": "error"}
    return {**home.environment, "HF_HOME": own, **caches, **quiet, "HF_TOKEN_PATH": os.devnull}


# The process.


def fetch_model(params: JsonObject, request: Request) -> JsonObject:
    """Fetch a whole model into the Hub's cache, which is the person's own by this process's environment."""
    from loratory.engine.models.hub import fetch_from_hub

    home = LoratoryHome.locate()
    folder = fetch_from_hub(
        params["hub_id"],
        params["revision"],
        on_progress=lambda progress: request.progress(progress._asdict()),
        token=params["token"],
        require_room=lambda _folder, needed_bytes, *_: require_disk_space(home, home.owner, needed_bytes),
    )
    return {"commit": folder.name}


def fetch_dataset(params: JsonObject, request: Request) -> JsonObject:
    """Download the data files of a dataset into a folder; unchanged files are not downloaded again."""
    from huggingface_hub import HfApi, hf_hub_download

    home = LoratoryHome.locate()
    hub_id, token, folder = str(params["hub_id"]), str(params["token"]), Path(str(params["folder"]))
    with DATASET.explain_errors(hub_id, params["revision"]):
        info = HfApi(token=token).dataset_info(
            hub_id, revision=params["revision"], files_metadata=True, timeout=_TIMEOUT_SECONDS
        )
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or () if _is_data(file.rfilename)}
        if not 0 < len(sizes) <= _MOST_FILES:
            raise DatasetError(
                f"{shown_name(hub_id)} has {len(sizes):,} data files that can be read; 1 to {_MOST_FILES:,} are possible.",
                "Choose a dataset that is stored as Parquet, JSON, CSV, Arrow or text.",
            )
        done, total = 0, sum(sizes.values())
        require_disk_space(home, home.owner, total)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name, size in sizes.items():
            request.progress(ModelProgress("downloading", f"Downloading {hub_id}.", done, total)._asdict())
            hf_hub_download(hub_id, name, repo_type="dataset", revision=info.sha, local_dir=folder, token=token)
            done += size
    # Those of an earlier revision; the metadata of the Hub's library speeds up the next download.
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name not in sizes and not name.startswith(".cache/"):
            with contextlib.suppress(OSError):
                path.unlink()
    return {"commit": info.sha}


def _is_data(name: str) -> bool:
    parts = PurePosixPath(name).parts
    is_plain = "\\" not in name and ".." not in parts and not any(part.startswith(".") for part in parts)
    return is_plain and name != "README.md" and kind_of(name) is not None


if __name__ == "__main__":
    serve({"model": fetch_model, "dataset": fetch_dataset})
