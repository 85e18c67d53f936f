"""Models on the Hugging Face Hub: searched, checked by their file list, then fetched into the Hub's own cache."""

import re
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import huggingface_hub
from huggingface_hub import HfApi, constants
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status  # type: ignore[attr-defined]
from huggingface_hub.utils.tqdm import disable_progress_bars
from pydantic import AliasPath, BaseModel, Field, TypeAdapter, field_validator

from loratory.engine.errors import HubUnreachableError, ModelAccessError, ModelError, StorageError
from loratory.engine.files import size_and_time, write_atomically
from loratory.engine.hub import MODEL
from loratory.engine.models import folder as model_files
from loratory.engine.models.catalog import is_causal_lm
from loratory.engine.models.prepared import ModelProgress, OnModelProgress, ignore_progress, require_space
from loratory.engine.paths import LoratoryHome

RequireRoom = Callable[[Path, int, str, str], None]  # folder, bytes, what for, what would help
_COMMIT = re.compile(r"[0-9a-f]{40}")
_TOKENIZER_SIDE_FILES = (
    "tokenizer_config.json special_tokens_map.json added_tokens.json merges.txt chat_template.jinja chat_template.json "
    "preprocessor_config.json processor_config.json video_preprocessor_config.json"
).split()


def cached_snapshot(
    hub_id: str, revision: str | None, part: model_files.ModelPart, cache: Path | None = None
) -> Path | None:
    """Return a model's folder in the Hub's cache, or in another, if all that is needed of it is there; no request is made.

    The folder has the name of the commit. Without a revision, that is the default branch as it was when it was last fetched.
    """
    commit, storage = revision or constants.DEFAULT_REVISION, _storage_folder(hub_id, cache)
    try:
        if not _COMMIT.fullmatch(commit):
            commit = (storage / "refs" / commit).read_text(encoding="utf-8").strip()
        folder = storage / "snapshots" / commit
        model_files.check_model_folder(folder, hub_id, part)
    except (OSError, ModelError):
        return None
    return folder


def find_snapshot(hub_id: str, revision: str | None, part: model_files.ModelPart, home: LoratoryHome) -> Path | None:
    """Return a model's folder as a person of a lab fetched it with their own token, or as all find it; no request is made."""
    own = home.own_hub_cache
    snapshot = cached_snapshot(hub_id, revision, part, own) if own is not None else None
    return snapshot or cached_snapshot(hub_id, revision, part)


def fetch_from_hub(
    hub_id: str,
    revision: str | None = None,
    part: model_files.ModelPart = model_files.ModelPart.WEIGHTS,
    on_progress: OnModelProgress = ignore_progress,
    *,
    timeout_seconds: float = 10.0,
    token: str | None = None,
    require_room: RequireRoom = require_space,
) -> Path:
    """Make a Hub model available on this machine; return its folder, which has the name of the commit.

    A cached commit is used without asking; a branch is looked up, and its cached state used where the Hub is out of reach.

    Args:
        revision: Branch, tag or commit; None for the default branch.
        on_progress: Called with the bytes that have arrived, from another thread.
        timeout_seconds: How long the Hub may take to list its files.
        token: Goes along with the requests; without one, those go by the login of this process.
        require_room: Raises where there is no space for so many bytes.

    Raises:
        HubUnreachableError: If the Hub cannot be reached and the cache does not hold what is needed.
        ModelError: If the model is missing, gated, or cannot be trained safely.
        StorageError: If the disk has no space for it.
    """
    cached = cached_snapshot(hub_id, revision, part)
    if cached is not None and (cached.name == revision or constants.HF_HUB_OFFLINE):
        return cached
    on_progress(ModelProgress("looking", f"Looking up {hub_id} on the Hub."))
    try:
        commit, sizes = _list_files(hub_id, revision, timeout_seconds, token)
        _refuse_by_list(hub_id, sizes, part)
        folder = _storage_folder(hub_id) / "snapshots" / commit
        _fetch(hub_id, folder, sizes, part, on_progress, token, require_room)
    except (HubUnreachableError, ModelAccessError):
        # A copy that is here may be read without a login; the Hub lists the files of gated models to all.
        if cached is not None:
            return cached
        raise
    if revision != commit:  # found again without a network, once all of it is here
        with suppress(OSError, StorageError):  # costs a look-up next time, not the model
            reference = _storage_folder(hub_id) / "refs" / (revision or constants.DEFAULT_REVISION)
            reference.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(reference, commit)
    return folder


def _list_files(
    hub_id: str, revision: str | None, timeout_seconds: float, token: str | None
) -> tuple[str, dict[str, int]]:
    """Return the commit, and the bytes of files by name: the top folder, and chat templates with names of their own."""
    with MODEL.explain_errors(hub_id, revision):
        info = HfApi(token=token).model_info(hub_id, revision=revision, files_metadata=True, timeout=timeout_seconds)
    sizes = {
        file.rfilename: file.size or 0
        for file in info.siblings or ()
        if "/" not in file.rfilename or model_files.is_named_template(file.rfilename)
    }
    if info.sha is None or _COMMIT.fullmatch(info.sha) is None or not sizes:
        raise ModelError(f"{hub_id} is empty on the Hub.", "Check the id, or choose another model.")
    return info.sha, sizes


def _refuse_by_list(hub_id: str, names: Collection[str], part: model_files.ModelPart) -> None:
    """Refuse by the names of its files alone what could never be used, before a byte of it is fetched."""
    if "config.json" not in names:
        if model_files.ADAPTER_CONFIG in names:
            raise ModelError(f"{hub_id} holds an adapter, not a model.", "Choose the base model that its card names.")
        if any(name.endswith(".gguf") for name in names):
            fix = "Download one of them and give its path, or choose the original model."
            raise ModelError(f"{hub_id} holds GGUF files only.", fix)
        raise ModelError(f"{hub_id} has no config.json, so it is not a transformers model.", "Choose another model.")
    if (
        part is model_files.ModelPart.WEIGHTS
        and model_files.SINGLE_WEIGHTS not in names
        and model_files.WEIGHTS_INDEX not in names
    ):
        pickles = sorted(name for name in names if name.endswith(model_files.PICKLE_SUFFIXES))
        if pickles:
            raise model_files.pickled_weights_error(hub_id, pickles[0])
        raise ModelError(f"{hub_id} has no safetensors weights.", "Choose another model.")


def _fetch(
    hub_id: str,
    folder: Path,
    sizes: Mapping[str, int],
    part: model_files.ModelPart,
    on_progress: OnModelProgress,
    token: str | None,
    require_room: RequireRoom,
) -> None:
    """Fetch what a part needs, group after group, into the folder of a commit.

    What makes a tokenizer look complete comes after all that belongs to it: a download that is cut off in between
    then never looks like a model without a chat template.
    """
    storage = _storage_folder(hub_id)

    def fetch_files(names: Sequence[str]) -> None:
        missing = [name for name in names if name in sizes and not (folder / name).exists()]
        if not missing:
            return
        total = sum(sizes[name] for name in missing)
        disable_progress_bars()
        with MODEL.explain_errors(hub_id), _bytes_followed(storage / "blobs", hub_id, total, on_progress):
            storage.mkdir(parents=True, exist_ok=True)
            require_room(storage, total, hub_id, "set HF_HOME")
            huggingface_hub.snapshot_download(hub_id, revision=folder.name, allow_patterns=missing, token=token)

    groups: list[Sequence[str]] = [["config.json", "generation_config.json"]]
    if part.value >= model_files.ModelPart.TOKENIZER.value:
        groups.append([*_TOKENIZER_SIDE_FILES, *filter(model_files.is_named_template, sizes)])
        groups += [name for name in model_files.TOKENIZER_FILES if name != "tokenizer.json"], ["tokenizer.json"]
    if part is model_files.ModelPart.WEIGHTS:
        groups.append([model_files.WEIGHTS_INDEX])
    for names in groups:
        fetch_files(names)
    model_files.refuse_own_code(model_files.read_config(folder / "config.json", hub_id), hub_id)
    if part is model_files.ModelPart.WEIGHTS:
        fetch_files([file.name for file in model_files.weight_files(folder, hub_id)])
    model_files.check_model_folder(folder, hub_id, part)


@contextmanager
def _bytes_followed(blobs: Path, hub_id: str, total_bytes: int, on_progress: OnModelProgress) -> Iterator[None]:
    """Report how much has arrived, by the growth of the cache, as in all releases of huggingface_hub."""
    end = threading.Event()

    def stored_bytes() -> int:
        return sum(size_and_time(blob)[0] for blob in blobs.glob("*"))  # 0 for one that was just renamed

    before_bytes = stored_bytes()

    def follow() -> None:
        while not end.wait(0.5):
            done_bytes = min(total_bytes, max(0, stored_bytes() - before_bytes))
            on_progress(ModelProgress("downloading", f"Downloading {hub_id}.", done_bytes, total_bytes))

    follower = threading.Thread(target=follow, daemon=True)
    follower.start()
    try:
        yield
    finally:
        end.set()
        follower.join()


def _storage_folder(hub_id: str, cache: Path | None = None) -> Path:
    return (cache or Path(constants.HF_HUB_CACHE)) / f"models--{hub_id.replace('/', '--')}"


class HubModel(BaseModel, frozen=True):
    """One model that a search found; None where the Hub does not report it."""

    id: str
    parameters: int | None = Field(None, validation_alias=AliasPath("safetensors", "total"))
    gated: bool | None = None
    downloads: int | None = None  # of the last 30 days
    model_type: str | None = Field(None, validation_alias=AliasPath("config", "model_type"))
    tags: tuple[str, ...] = ()

    @field_validator("gated", mode="before")
    @classmethod
    def _any_kind_of_gate(cls, value: object) -> bool | None:
        return None if value is None else bool(value)  # "auto", "manual", or false

    @property
    def license(self) -> str | None:
        """Identifier of its licence, as its owner tagged it."""
        return next((tag.removeprefix("license:") for tag in self.tags if tag.startswith("license:")), None)

    @property
    def is_supported(self) -> bool | None:
        """Whether the installed transformers can build it without code of its own."""
        return None if self.model_type is None else is_causal_lm(self.model_type)


def search_hub(query: str, *, limit: int = 20, timeout_seconds: float = 6.0) -> tuple[HubModel, ...]:
    """Return text-generation models whose name matches, most downloaded first.

    Raises:
        HubUnreachableError: If the Hub cannot be reached, or does not answer in time.
        ModelError: If it refuses the question.
    """
    parameters: dict[str, str | int | list[str]] = {
        "search": query.strip(),
        "pipeline_tag": "text-generation",
        "sort": "downloads",
        "limit": limit,
        "expand": ["downloads", "gated", "safetensors", "tags", "config"],
    }
    with MODEL.explain_errors(f"The search for {query.strip()!r}"):
        # One plain request: HfApi.list_models repeats a failed one for half a minute.
        response = get_session().get(
            f"{constants.ENDPOINT}/api/models", params=parameters, headers=build_hf_headers(), timeout=timeout_seconds
        )
        hf_raise_for_status(response)
        return TypeAdapter(tuple[HubModel, ...]).validate_json(response.content)
