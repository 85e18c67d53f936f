"""Resolve a chat target to the folders to load, before any process starts."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from loratory.engine.chat.contract import AdapterChoice, Branch, ChatTarget, FrozenModel
from loratory.engine.config.methods.base import PeftMethod
from loratory.engine.config.methods.lora import PLAIN_LORA_FIX, initialization_from_base
from loratory.engine.config.methods.registry import METHODS, method_of_peft_type
from loratory.engine.config.run import ModelConfig
from loratory.engine.config.vision import VisionConfig
from loratory.engine.errors import ModelError, RunError
from loratory.engine.hardware.device import Device
from loratory.engine.models.catalog import find_in_catalog
from loratory.engine.models.fingerprint import WeightsFile, changed_file
from loratory.engine.models.folder import read_config
from loratory.engine.models.prepared import DEMO_MODEL_ID
from loratory.engine.models.source import DEMO_HUB_ID, is_hub_id, model_path
from loratory.engine.paths import AllowedPaths, LoratoryHome
from loratory.engine.runs.checkpoints import ADAPTER_SUBFOLDER, offered_checkpoints
from loratory.engine.runs.provenance import ADAPTER_CONFIG, ADAPTER_WEIGHTS, run_title, trained_base
from loratory.engine.runs.run import RUN_ID, RunFolder


class PlannedWeights(FrozenModel):
    """A folder with an adapter, or with a fully trained model."""

    folder: Path
    name: str  # of the run or the folder, for messages
    method: str  # its name; empty if Loratory does not train it
    peft_type: str = ""  # from the adapter's configuration
    base: tuple[WeightsFile, ...] = ()  # that a run was trained on; empty where it is unknown, or another was chosen

    @property
    def traits(self) -> PeftMethod | None:
        """The method; None if Loratory does not train it."""
        return METHODS.get(self.method)

    @property
    def is_whole_model(self) -> bool:
        """Whether the folder holds a model without an adapter."""
        return self.traits is not None and self.traits.trains_all


class LoadPlan(FrozenModel):
    """The base model and the adapters to load."""

    model: ModelConfig  # the base model, with the requested quantization
    tuned: PlannedWeights | None = None
    second: PlannedWeights | None = None
    vision: VisionConfig = VisionConfig()  # how large images are, as in the run's training
    notes: tuple[str, ...] = ()  # for the user, about this combination
    owner: str = ""  # in a lab, the person to whose folders a path of the base is confined

    def home(self, home: LoratoryHome) -> LoratoryHome:
        """Return the home in which to look up the base model: its owner's for a path, the requester's for a Hub id.

        Sharing a run does not share a gated model that only the owner's token can open. An admin on the machine itself
        acts for the owner.
        """
        is_asked_by_another = home.owner not in ("", self.owner) and is_hub_id(self.model.id.strip())
        return home.for_person(self.owner) if self.owner and not is_asked_by_another else home

    @property
    def trained_weights(self) -> dict[Branch, PlannedWeights]:
        """The trained weights by the branch that uses them."""
        weights_of: dict[Branch, PlannedWeights | None] = {"tuned": self.tuned, "second": self.second}
        return {branch: weights for branch, weights in weights_of.items() if weights is not None}

    def base_changes(self, folder: Path, name: str, home: LoratoryHome) -> tuple[str, ...]:
        """Return a sentence for each run whose base, now in a folder, has other weights than those it was trained on."""
        return tuple(
            f"The weights of {name} have changed since {weights.name} was trained on them: {file} differs."
            for weights in self.trained_weights.values()
            if (file := changed_file(weights.base, folder, name, home.cache))
        )

    @property
    def method_name(self) -> str:
        """Display name of the training method; empty for a base model alone."""
        if self.tuned is None:
            return ""
        traits, quantization = self.tuned.traits, self.model.quantization
        if traits is not None:
            return traits.display_name(quantization)
        return self.tuned.peft_type if quantization == "none" else f"{self.tuned.peft_type} on {quantization}"


class LoadRequest(FrozenModel):
    """A request to load a plan on a device."""

    plan: LoadPlan
    device: Device
    media: Path | None = None  # the folder of the media store with the images of its conversations


class _WeightsAndBase(NamedTuple):
    weights: PlannedWeights
    model: ModelConfig  # the base that the run or the adapter names
    vision: VisionConfig = VisionConfig()

    def on(self, model: ModelConfig) -> PlannedWeights:
        """Return the weights to load with a base, which may be one that a person chose in place of their own."""
        is_own = (model.id, model.revision) == (self.model.id, self.model.revision)
        return self.weights if is_own else self.weights.model_copy(update={"base": ()})


def plan_load(target: ChatTarget, home: LoratoryHome | None = None) -> LoadPlan:
    """Find the folders that a target names. In a lab, only those that the home's owner may open.

    Raises:
        RunError: If a run has no adapter yet, or a checkpoint does not exist.
        ModelError: If a folder has no model or adapter, or two adapters have different bases.
    """
    owner = _base_owner(target, home) if home is not None and home.owner else ""
    tuned, second = (None if choice is None else _find(choice) for choice in (target.tuned, target.second))
    sources = [source for source in (tuned, second) if source is not None]
    model = target.model or (sources[0].model if sources else None)
    if model is None:
        raise ModelError("No model was chosen.", "Choose a run, an adapter or a model.")
    if home is not None and owner:
        _check_access(model, home.for_person(owner), is_guest=home.is_guest)
    if target.model is None:
        _check_own_base(sources)
    notes: tuple[str, ...] = ()
    if target.quantization is not None and target.quantization != model.quantization:
        if tuned is not None:
            notes = (
                f"{tuned.weights.name} was trained with quantization {model.quantization} and is loaded with "
                f"{target.quantization}: answers may differ.",
            )
        model = model.model_copy(update={"quantization": target.quantization})
    weights, other_weights = (source and source.on(model) for source in (tuned, second))
    vision = sources[0].vision if sources else VisionConfig()
    return LoadPlan(model=model, tuned=weights, second=other_weights, vision=vision, notes=notes, owner=owner)


def _check_access(model: ModelConfig, home: LoratoryHome, *, is_guest: bool) -> None:
    """Raise unless a person of a lab may load a base from its owner's home."""
    if find_in_catalog(model.id.strip()) is not None:
        return
    if is_guest:
        raise ModelError("A guest uses the models of the catalogue.", "Choose one of them, or one of your runs.")
    model_path(model.id.strip(), home)


def _check_own_base(sources: Sequence[_WeightsAndBase]) -> None:
    """Raise unless all were trained on the same base, which is on this machine if it is a folder."""
    first = sources[0]
    for other in sources[1:]:
        if (first.model.id, first.model.revision) != (other.model.id, other.model.revision):
            what = (
                f"{first.weights.name} was trained on {first.model.shown_name}, {other.weights.name} on "
                f"{other.model.shown_name}."
            )
            raise ModelError(what, "Compare two runs on the same model.")
    base = Path(first.model.id)
    if base.is_absolute() and not base.exists():
        fix = "Copy it back, or choose the model that replaces it."
        raise ModelError(f"The base model of {first.weights.name}, {base.name}, is not on this machine.", fix)


def _base_owner(target: ChatTarget, home: LoratoryHome) -> str:
    """Return the owner of the folders in which to look up the base: the run's owner, or the home's if no run names it.

    Raises:
        ModelError: If the person may not name one of the folders.
    """
    owners = []
    for choice in filter(None, (target.tuned, target.second)):
        owner = _owner_of_run(choice.folder, home)
        if not owner:
            AllowedPaths(home).read(choice.folder, ModelError)
        owners.append(owner or home.owner)
    return owners[0] if owners and target.model is None else home.owner


def _owner_of_run(folder: Path, home: LoratoryHome) -> str:
    """Return the owner of a run that the person may load (own, shared, or any for an admin); empty otherwise."""
    resolved = folder.resolve()
    owner = resolved.parent.name
    if resolved.parent.parent != home.runs.resolve() or not RUN_ID.fullmatch(resolved.name):
        return ""
    is_own = owner == home.owner
    may_load = is_own or home.role == "admin" or (not home.is_guest and RunFolder(resolved).shared_mark.exists())
    return owner if may_load else ""


def list_checkpoints(run: Path) -> tuple[str, ...]:
    """Return the names of a run's usable checkpoints, newest first; damaged ones are left out."""
    # Chat needs no optimizer state, which is most of a checkpoint.
    usable = offered_checkpoints(RunFolder(run).checkpoints, below=f"{ADAPTER_SUBFOLDER}/")
    return tuple(checkpoint.folder.name for checkpoint in usable)


def _find(choice: AdapterChoice) -> _WeightsAndBase:
    run = RunFolder(choice.folder)
    if run.config.is_file() and not (choice.folder / ADAPTER_CONFIG).is_file():
        return _find_in_run(run, choice.checkpoint)
    if choice.checkpoint is not None:
        what = f"{choice.folder.name} is not a run and has no checkpoints."
        raise RunError(what, "Leave the checkpoint out, or name a run.")
    if (choice.folder / ADAPTER_CONFIG).is_file():
        return _find_adapter(choice.folder, choice.folder.name)
    if (choice.folder / "config.json").is_file():
        what = f"{choice.folder.name} holds a model, not an adapter."
        raise ModelError(what, "Choose it as the model instead, with no adapter.")
    fix = f"Choose a run, or a folder with {ADAPTER_CONFIG} in it."
    raise ModelError(f"{choice.folder.name or 'That folder'} holds neither a run nor an adapter.", fix)


def _find_in_run(run: RunFolder, checkpoint: str | None) -> _WeightsAndBase:
    config = run.read_config()
    name = run_title(config)
    folder = run.adapter if checkpoint is None else _intact_folder(run, checkpoint)
    if folder is None or not any((folder / file).is_file() for file in (ADAPTER_CONFIG, "config.json")):
        names = ", ".join(list_checkpoints(run.path)[:5])
        hint = f"Choose one of its checkpoints: {names}." if names else ""
        if checkpoint is None:
            fix = hint or "Wait for its first checkpoint or its end."
            raise RunError(f"The run {name} has no adapter yet.", fix)
        what = f"The run {name} has no complete checkpoint {checkpoint[:60]!r}."
        raise RunError(what, hint or "It has none yet; leave the checkpoint out, or wait for the first one.")
    if config.adapter.traits.trains_all:
        weights = PlannedWeights(folder=folder, name=name, method=config.adapter.method)
    else:
        weights = _find_adapter(folder, name).weights
    return _WeightsAndBase(weights.model_copy(update={"base": trained_base(run)}), config.model, config.vision)


def _intact_folder(run: RunFolder, name: str) -> Path | None:
    """Return the folder of a checkpoint's trained weights; None if it is incomplete or damaged."""
    below = f"{ADAPTER_SUBFOLDER}/"
    usable = offered_checkpoints(run.checkpoints, below)
    return next((checkpoint.folder / below for checkpoint in usable if checkpoint.folder.name == name), None)


def _find_adapter(folder: Path, name: str) -> _WeightsAndBase:
    if not (folder / ADAPTER_WEIGHTS).is_file():
        if (folder / "adapter_model.bin").is_file():
            what = f"The adapter {name} is a pickle file (adapter_model.bin), which can run code when it is read."
            raise ModelError(what, "If you trust it, save it again with PEFT; that writes safetensors.")
        raise ModelError(f"The adapter {name} has no {ADAPTER_WEIGHTS}.", "Copy the whole adapter folder again.")
    values = read_config(folder / ADAPTER_CONFIG, name)
    if "peft_type" not in values:
        raise ModelError(f"The {ADAPTER_CONFIG} of {name} cannot be read.", "Copy the adapter folder again.")
    peft_type, base, revision = str(values["peft_type"]), values.get("base_model_name_or_path"), values.get("revision")
    initialization = initialization_from_base(values)
    if initialization:
        what = f"The adapter {name} was initialized with {initialization}, which changes the weights of its base."
        raise ModelError(what, PLAIN_LORA_FIX)
    if not isinstance(base, str) or not base or len(base) > 400:
        base = "unknown"  # only used if no base is chosen; the error then names it
    # Without access to the Hub, the demo model has its catalogue name.
    if base == DEMO_HUB_ID and revision is None:
        base = DEMO_MODEL_ID
    method = method_of_peft_type(peft_type)
    weights = PlannedWeights(folder=folder, name=name, method=method.name if method else "", peft_type=peft_type)
    return _WeightsAndBase(weights, ModelConfig(id=base, revision=revision if isinstance(revision, str) else None))
