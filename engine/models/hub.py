"""Models on the Hugging Face Hub: checked by their file list first, then fetched into the Hub's own cache.

A token, where one is needed, is found by huggingface_hub itself (HF_TOKEN, or the login); it never passes through here.
"""

import re
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import huggingface_hub
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils.tqdm import tqdm as hub_tqdm

from engine.errors import EngineError, HubUnreachableError, ModelError
from engine.models.folder import (
    ADAPTER_CONFIG,
    SINGLE_WEIGHTS,
    TOKENIZER_FILES,
    UNPICKLED_SUFFIXES,
    WEIGHTS_INDEX,
    ModelPart,
    check_model_folder,
    pickled_weights_error,
    read_config,
    refuse_own_code,
    shard_names,
)
from engine.models.progress import ModelProgress, OnModelProgress, nobody_listens

Answer = TypeVar("Answer")

_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_MAX_HUB_ID_LENGTH = 96
_CONFIG_FILES = ("config.json", "generation_config.json")
_TOKENIZER_SIDE_FILES = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)


class HubSnapshot(NamedTuple):
    """A model in the Hub's cache on this machine."""

    folder: Path
    commit: str


class _Listing(NamedTuple):
    commit: str
    sizes: dict[str, int]  # bytes by file name, top folder only


def is_hub_id(text: str) -> bool:
    """Whether this is formed like a Hub id: `name` or `owner/name`."""
    if len(text) > _MAX_HUB_ID_LENGTH or "--" in text or ".." in text or text.endswith((".git", ".gguf")):
        return False
    return _HUB_ID.fullmatch(text) is not None


def cached_snapshot(hub_id: str, revision: str | None, part: ModelPart) -> HubSnapshot | None:
    """The model in the Hub's cache, if everything that is needed of it is there; asks nobody.

    Args:
        hub_id: Such as Qwen/Qwen3-0.6B.
        revision: Branch, tag or commit; None for the default branch as it was when it was last fetched.
        part: How much of the model is needed.
    """
    storage = _storage_folder(hub_id)
    wanted = revision or constants.DEFAULT_REVISION
    commit = wanted
    if not _COMMIT.fullmatch(wanted):
        reference = storage / "refs" / wanted
        if ".." in Path(wanted).parts or not reference.is_file():
            return None
        commit = reference.read_text(encoding="utf-8").strip()
    folder = storage / "snapshots" / commit
    try:
        check_model_folder(folder, hub_id, part)
    except ModelError:
        return None
    return HubSnapshot(folder, commit)


def fetch_from_hub(
    hub_id: str,
    revision: str | None = None,
    part: ModelPart = ModelPart.WEIGHTS,
    on_progress: OnModelProgress = nobody_listens,
    *,
    timeout_seconds: float = 10.0,
) -> HubSnapshot:
    """Make a Hub model available on this machine, pinned to a commit.

    A cached commit is used without asking; a branch is looked up, and its cached state used where the Hub is out of reach.

    Raises:
        HubUnreachableError: If the Hub cannot be reached and the cache does not hold what is needed.
        ModelError: If the model is missing, gated, or cannot be trained safely.
    """
    cached = cached_snapshot(hub_id, revision, part)
    if cached is not None and (cached.commit == revision or constants.is_offline_mode()):
        return cached
    on_progress(ModelProgress("looking", f"Looking up {hub_id} on the Hub."))
    try:
        listing = _list_files(hub_id, revision, timeout_seconds)
    except HubUnreachableError:
        if cached is not None:
            return cached
        raise
    cached = cached_snapshot(hub_id, listing.commit, part)
    if cached is not None:
        return cached
    with hub_errors_explained(hub_id, revision):
        folder = _fetch_files(hub_id, listing, _wanted_without_shards(hub_id, listing, part), on_progress)
        refuse_own_code(read_config(folder / "config.json", hub_id), hub_id)
        if part is ModelPart.WEIGHTS:
            weights: Sequence[str] = (SINGLE_WEIGHTS,)
            if WEIGHTS_INDEX in listing.sizes:
                weights = shard_names(folder / WEIGHTS_INDEX, hub_id)
            _fetch_files(hub_id, listing, weights, on_progress)
    check_model_folder(folder, hub_id, part)
    return HubSnapshot(folder, listing.commit)


def within_seconds(seconds: float, ask: Callable[[], Answer]) -> Answer:
    """Wait so long for a question to the Hub and no longer, whatever it hangs on: name lookup, proxy or a slow server.

    Raises:
        TimeoutError: If there is no answer in time; the question is then left to itself.
        Exception: Whatever `ask` raises.
    """
    answer: Future[Answer] = Future()

    def put() -> None:
        try:
            answer.set_result(ask())
        except Exception as error:
            answer.set_exception(error)

    threading.Thread(target=put, daemon=True).start()
    return answer.result(seconds)


def _list_files(hub_id: str, revision: str | None, timeout_seconds: float) -> _Listing:
    with hub_errors_explained(hub_id, revision):
        info = within_seconds(
            timeout_seconds, lambda: HfApi().model_info(hub_id, revision=revision, files_metadata=True)
        )
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or () if "/" not in file.rfilename}
    if info.sha is None or not sizes:
        raise ModelError(f"{hub_id} is empty on the Hub.", "Check the id, or choose another model.")
    return _Listing(info.sha, sizes)


def _wanted_without_shards(hub_id: str, listing: _Listing, part: ModelPart) -> list[str]:
    """Names of the files to fetch first; refuses by the list alone what could never be used."""
    names = listing.sizes
    if "config.json" not in names:
        if ADAPTER_CONFIG in names:
            raise ModelError(f"{hub_id} holds an adapter, not a model.", "Choose the base model that its card names.")
        if any(name.endswith(".gguf") for name in names):
            raise ModelError(
                f"{hub_id} holds GGUF files only.",
                "Download one of them and give its path, or choose the original model.",
            )
        raise ModelError(f"{hub_id} has no config.json, so it is no transformers model.", "Choose another model.")
    wanted = list(_CONFIG_FILES)
    if part.value >= ModelPart.TOKENIZER.value:
        wanted += [*TOKENIZER_FILES, *_TOKENIZER_SIDE_FILES]
    if part is ModelPart.WEIGHTS:
        if SINGLE_WEIGHTS not in names and WEIGHTS_INDEX not in names:
            pickled = sorted(name for name in names if name.endswith(UNPICKLED_SUFFIXES))
            if pickled:
                raise pickled_weights_error(hub_id, pickled[0])
            raise ModelError(f"{hub_id} has no safetensors weights.", "Choose another model.")
        wanted.append(WEIGHTS_INDEX)
    return [name for name in wanted if name in names]


def _fetch_files(hub_id: str, listing: _Listing, names: Sequence[str], on_progress: OnModelProgress) -> Path:
    total_bytes = sum(listing.sizes.get(name, 0) for name in names)
    with _bytes_followed(_storage_folder(hub_id) / "blobs", hub_id, total_bytes, on_progress):
        folder = huggingface_hub.snapshot_download(
            hub_id, revision=listing.commit, allow_patterns=list(names), tqdm_class=_SilentBar
        )
    return Path(folder)


@contextmanager
def _bytes_followed(blobs: Path, hub_id: str, total_bytes: int, on_progress: OnModelProgress) -> Iterator[None]:
    """Tell how much has arrived, by the growth of the cache, which is the same in all releases of huggingface_hub."""
    before_bytes = _folder_bytes(blobs)
    finished = threading.Event()

    def follow() -> None:
        while not finished.wait(0.5):
            arrived = min(total_bytes, max(0, _folder_bytes(blobs) - before_bytes))
            on_progress(ModelProgress("downloading", f"Downloading {hub_id}.", arrived, total_bytes))

    follower = threading.Thread(target=follow, daemon=True)
    follower.start()
    try:
        yield
    finally:
        finished.set()
        follower.join()


@contextmanager
def hub_errors_explained(asked_for: str, revision: str | None = None) -> Iterator[None]:
    """Turn what goes wrong while the Hub is asked for something into errors that people understand.

    Raises:
        HubUnreachableError: If it gave no answer, or one that says nothing about what was asked for.
        ModelError: If it answered with a refusal.
    """
    try:
        yield
    except EngineError:
        raise
    except GatedRepoError as error:
        raise ModelError(
            f"{asked_for} is gated: its owner asks you to accept terms first.",
            f"Accept them at https://huggingface.co/{asked_for} and log in with `hf auth login` or HF_TOKEN.",
        ) from error
    except RevisionNotFoundError as error:
        raise ModelError(
            f"{asked_for} has no revision {revision}.",
            "Leave the revision empty, or name a branch, tag or commit it has.",
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelError(
            f"There is no model {asked_for} on the Hub, or it is private.",
            "Check the id; for a private model log in with `hf auth login` or HF_TOKEN.",
        ) from error
    except OfflineModeIsEnabled as error:
        raise HubUnreachableError(
            f"{asked_for} needs the Hub, which may not be asked (HF_HUB_OFFLINE is set).",
            "Unset HF_HUB_OFFLINE, or choose a local folder or the demo model.",
        ) from error
    except HfHubHTTPError as error:
        raise _http_error(asked_for, error) from error
    except Exception as error:
        # Network libraries differ between releases of huggingface_hub; what is left here is no answer at all.
        if isinstance(error, OSError) and not isinstance(
            error, LocalEntryNotFoundError | ConnectionError | TimeoutError
        ):
            raise
        raise HubUnreachableError(
            f"{asked_for} needs the Hub, which cannot be reached ({type(error).__name__}).",
            "Check the network connection, or choose a local folder or the demo model.",
        ) from error


def _http_error(asked_for: str, error: HfHubHTTPError) -> ModelError:
    status = error.response.status_code if error.response is not None else 0
    if status in (401, 403):
        return ModelError(
            f"The Hub refuses access to {asked_for} (HTTP {status}).",
            "Check your token and its rights with `hf auth whoami`, then log in again.",
        )
    if status == 429:
        return HubUnreachableError(
            "The Hub answers too many requests (HTTP 429).", "Wait some minutes, then try again."
        )
    if status >= 500:
        return HubUnreachableError(f"The Hub is out of order (HTTP {status}).", "Try again later.")
    return ModelError(f"The Hub does not give {asked_for} (HTTP {status}).", "Check the id, or choose another model.")


def _storage_folder(hub_id: str) -> Path:
    return Path(constants.HF_HUB_CACHE) / f"models--{hub_id.replace('/', '--')}"


def _folder_bytes(folder: Path) -> int:
    total = 0
    try:
        for path in folder.iterdir():
            try:
                total += path.stat().st_size
            except OSError:  # renamed under us
                continue
    except OSError:
        return 0
    return total


class _SilentBar(hub_tqdm):
    """huggingface_hub draws nothing; progress goes to whoever asked for it."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{**options, "disable": True})  # type: ignore[no-untyped-call]
