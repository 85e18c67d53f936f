"""What comes before the first step of an attempt: device, checkpoint, tokenizer, rows, model and the order of rows."""

import random
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch

from loratory.engine.config.objectives import objective_of
from loratory.engine.config.rules import optimizer_name
from loratory.engine.config.run import DatasetConfig, RunConfig
from loratory.engine.data.contract import DatasetReport
from loratory.engine.data.hub import reads_from_hub
from loratory.engine.data.media.store import MediaStore
from loratory.engine.data.passes.prepare import PreparedDataset, prepare_dataset
from loratory.engine.data.step_plan import RowOrder, RowPlan, choose_row_order, row_plan
from loratory.engine.errors import DatasetError, ModelError
from loratory.engine.hardware.libraries import note_architectures
from loratory.engine.inspector.worker.load_tokenizer import load_tokenizer
from loratory.engine.models.fingerprint import BackgroundHash, changed_file, list_weights
from loratory.engine.models.inventory_cache import known_inventory
from loratory.engine.models.prepared import ModelProgress
from loratory.engine.models.source import ModelSource, resolve_model
from loratory.engine.paths import LoratoryHome
from loratory.engine.processes.spawn import Access, give_up_access
from loratory.engine.runs.checkpoints import Checkpoint
from loratory.engine.runs.history.events import DataReportData, ParametersData, ResumedData
from loratory.engine.runs.provenance import find_warm_start, read_provenance, run_title, trained_base
from loratory.engine.runs.run import RunFolder
from loratory.engine.training import faults
from loratory.engine.training.assembly import Assembly, assemble
from loratory.engine.training.batching.choose import choose_merging, lengths_of
from loratory.engine.training.batching.images import ImageInputs
from loratory.engine.training.build import add_adapter, load_model
from loratory.engine.training.checkpoints import folder as checkpoints
from loratory.engine.training.checkpoints.state_files import count_parameters, load_warm_start
from loratory.engine.training.distribution import shard, sharded_like
from loratory.engine.training.failure import StopRequests
from loratory.engine.training.methods.registry import method_trainer
from loratory.engine.training.objectives.reference import ReferenceCache
from loratory.engine.training.placement import (
    SINGLE_PROCESS,
    Placement,
    ProcessGroup,
    TrainingDtypes,
    apple_notes,
    choose_placement,
    choose_precision,
    resumed_notes,
    skipped_device_notes,
)
from loratory.engine.training.reporting import DeviceMemory, RunEvents
from loratory.engine.training.trackers import start_trackers

# How long processes wait for one that measures, saves, or waits for room on the disk.
_GROUP_TIMEOUT = timedelta(days=2)


@dataclass(frozen=True)
class Attempt:
    """One attempt at one run."""

    folder: RunFolder
    home: LoratoryHome
    config: RunConfig
    number: int


@dataclass(frozen=True)
class PreparedRun:
    """Everything that the training loop needs."""

    placement: Placement
    precision: TrainingDtypes
    tokenizer: Any
    data: PreparedDataset
    model: Any
    assembly: Assembly
    row_plan: RowPlan
    replaced: dict[str, torch.Tensor]  # by a warm start
    base: BackgroundHash
    reference: ReferenceCache | None = None  # of log-probabilities to compute before the first step


class StoppedBeforeTrainingError(BaseException):
    """A stop was requested before there was anything to save; passes through code that catches any `Exception`."""


@dataclass
class Preparation:
    """Prepares one attempt, and checks for requests to end it meanwhile."""

    attempt: Attempt
    events: RunEvents
    requests: StopRequests
    group: ProcessGroup = SINGLE_PROCESS  # processes that share the run; known once the device is chosen
    resumed_from: Checkpoint | None = None  # what the attempt continues from

    def check_requests(self) -> None:
        """Return unless the run must end.

        Raises:
            CancelledError: If it must end at once.
            StoppedBeforeTrainingError: If it must save and end.
        """
        self.requests.check_cancel()
        # Several processes must decide together, which they do from the first step on.
        if self.group.world_size == 1 and self.requests.stop_wanted():
            raise StoppedBeforeTrainingError

    def run(self) -> PreparedRun:
        """Prepare everything in the order in which it can fail; raises as `check_requests` does.

        Raises:
            EngineError: If something cannot work.
        """
        config, events = self.attempt.config, self.events
        placement, precision = self._choose_device()
        events.status("loading_model", f"Resolving {config.model.id}.")
        source = self.group.main_process_first(self._find_base)
        base_files = list_weights(Path(source.location), source.name)  # before they are loaded
        if not reads_from_hub(config.dataset):
            self._give_up_hub_access()
        tokenizer, template = load_tokenizer(source, config.vision)
        self.check_requests()
        data = self._read_data(tokenizer)
        self._give_up_hub_access()
        for note in template.notes:  # the Data tab shows them before the start
            print(note, flush=True)
        for warning in template.warnings:
            events.warn(warning, "template")
        self.check_requests()
        model, replaced = self._load_model(source, precision, placement)
        parameters = count_parameters(model)
        if placement.sharded:
            shard(model, placement, precision.compute)
            replaced = sharded_like(replaced, dict(model.named_parameters()))
        images = self._image_inputs(tokenizer, data)
        assembly = assemble(model, config, precision, placement, data.train, tokenizer.pad_token_id, images)
        for note in assembly.notes:
            events.warn(note, "batching")
        assembly = self._with_merged_passes(assembly, placement, data)
        assembly, plan = self._with_common_order(assembly, data.train.sha256())
        self._report_parameters(parameters, precision, placement, assembly)
        self.check_requests()
        reference = self._reference_cache(source, precision)
        base = BackgroundHash(base_files, Path(source.location), self.attempt.home.cache)
        if self.group.is_main:
            base.start()
        return PreparedRun(placement, precision, tokenizer, data, model, assembly, plan, replaced, base, reference)

    def _find_base(self) -> ModelSource:
        """Find the base; a run resumes on its original weights only."""
        source = resolve_model(self.attempt.config.model, self.attempt.home, self._on_model_progress)
        if self.group.is_main and self.resumed_from is not None:
            before = trained_base(self.attempt.folder)
            if file := changed_file(before, Path(source.location), source.name, self.attempt.home.cache):
                what = f"The weights of {source.name} have changed since this run began: {file} differs."
                raise ModelError(what, "Put the original files back and resume, or start a new run.")
        return source

    def _reference_cache(self, source: ModelSource, precision: TrainingDtypes) -> ReferenceCache | None:
        config, home = self.attempt.config, self.attempt.home
        if not (config.training.precompute_ref_log_probs and objective_of(config).precomputes):
            return None
        start = config.adapter.warm_start
        earlier = find_warm_start(start, self.attempt.folder.path.parent, home) if start is not None else None
        return ReferenceCache.for_run(home.cache, Path(source.location), earlier, config, precision.compute_name)

    def _choose_device(self) -> tuple[Placement, TrainingDtypes]:
        """Choose device and precision, meet the other processes, and find the checkpoint to continue from."""
        config, events = self.attempt.config, self.events
        note_architectures(self.attempt.home, str(torch.__version__), torch.cuda.get_arch_list())
        placement = choose_placement(config)
        events.device_memory = DeviceMemory.from_placement(placement)
        self.group = placement.group
        if self.group.world_size > 1:
            from accelerate import PartialState

            PartialState(cpu=placement.torch_device.type == "cpu", timeout=_GROUP_TIMEOUT)
        if self.group.is_main:
            events.trackers = start_trackers(config, self.attempt.folder.path, run_title(config), events.warn)
        self.resumed_from = self._find_checkpoint()
        checkpoint_dtype = self.resumed_from.manifest.compute_dtype if self.resumed_from is not None else None
        precision = choose_precision(config, placement.device, checkpoint_dtype)
        for note in apple_notes(config, placement.device) + resumed_notes(config, placement.device, checkpoint_dtype):
            events.warn(note, "precision")
        for note in skipped_device_notes(config, placement, self.attempt.home):
            events.warn(note, "device")
        events.predicted_bytes = read_provenance(self.attempt.folder).predicted_bytes
        return placement, precision

    def _find_checkpoint(self) -> Checkpoint | None:
        folder = self.attempt.folder.checkpoints

        def find() -> str:
            checkpoints.sweep(folder)
            checkpoints.restore_folder(self.attempt.folder.adapter)
            checkpoint = checkpoints.find_checkpoint(folder, partial(self.events.warn, code="checkpoint_damaged"))
            name = checkpoint.folder.name if checkpoint else ""
            if self.attempt.number > 1:
                self.events.emit(ResumedData(step=checkpoint.step if checkpoint else 0, checkpoint=name or None))
            return name

        name = self.group.broadcast_from_main(find)
        return checkpoints.open_checkpoint(folder / name) if name else None

    def _on_model_progress(self, progress: ModelProgress) -> None:
        self.check_requests()
        self.events.status("loading_model", progress.message)

    def _give_up_hub_access(self) -> None:
        """Forget the login once everything is local, before foreign files are parsed; Trackio's Space needs it to the end."""
        if "trackio" not in self.attempt.config.training.report_to:
            give_up_access(Access.HUB)

    def _read_data(self, tokenizer: Any) -> PreparedDataset:
        config, events = self.attempt.config, self.events
        events.status("reading_data", f"Reading {config.dataset.source}.")
        data = prepare_dataset(
            config.dataset,
            seed=config.training.seed,
            max_length=config.training.max_length,
            tokenizer=tokenizer,
            home=self.attempt.home,
            objective=objective_of(config),
            on_progress=lambda _: self.check_requests(),
        )
        report = data.report
        _require_pinned_data(read_provenance(self.attempt.folder).dataset_fingerprint, config.dataset, report)
        trained_tokens = data.train.trained_tokens  # the report counts those of held-out rows too
        events.emit(
            DataReportData(
                train_rows=len(data.train),
                eval_rows=len(data.held_out),
                dropped_rows=report.dropped,
                trained_tokens=trained_tokens,
                masked_tokens=sum(data.train.lengths()) - trained_tokens,
                truncated_rows=report.token_lengths.over_max_length if report.token_lengths else 0,
                images=sum(data.train.image_counts()),
                chosen_longer=report.pair_lengths.longer_share if report.pair_lengths else None,
            )
        )
        return data

    def _image_inputs(self, tokenizer: Any, data: PreparedDataset) -> ImageInputs | None:
        """Return what opens the images of rows, where some have any.

        Raises:
            DatasetError: If answers to prompts with images are to be sampled.
        """
        if not any((*data.train.image_counts(), *data.held_out.image_counts())):
            return None
        if objective_of(self.attempt.config).samples_answers:
            what = f"{self.attempt.config.training.objective} samples answers to prompts of text alone, and rows have images."
            raise DatasetError(what, "Choose rows without images, or training.objective sft or dpo.")
        return ImageInputs(tokenizer.image_text, MediaStore(self.attempt.home.media))

    def _load_model(
        self, source: ModelSource, precision: TrainingDtypes, placement: Placement
    ) -> tuple[Any, dict[str, torch.Tensor]]:
        """Load the base, add the adapter, and give it the weights of an earlier one where the run starts from these."""
        config, events = self.attempt.config, self.events
        events.status("loading_model", f"Loading {source.name}.")
        torch.manual_seed(config.training.seed)
        random.seed(config.training.seed)
        faults.reached("session:load_model")
        model = load_model(source, config, precision, placement)
        events.status("preparing", f"Preparing {config.method_name}.")
        model = add_adapter(model, config, source)
        # A resumed run has weights of its own; those that it started from may be its reference.
        needs_start = self.resumed_from is None or objective_of(config).compares(config)
        if config.adapter.warm_start is None:
            if self.resumed_from is None:
                method_trainer(config.adapter.method).initialize(model, config.adapter, source)
            return model, {}
        if not needs_start:
            return model, {}
        earlier = find_warm_start(config.adapter.warm_start, self.attempt.folder.path.parent, self.attempt.home)
        return model, load_warm_start(model, earlier)

    def _with_merged_passes(self, assembly: Assembly, placement: Placement, data: PreparedDataset) -> Assembly:
        """Merge passes where the device has room; a resumed run keeps its number where that still fits."""
        if assembly.setup.images is not None:
            why = "passes with images are not merged"
            return replace(assembly, optimizations=dict(assembly.optimizations) | {"merged_passes": why})
        before = self.resumed_from.manifest.row_plan if self.resumed_from is not None else None
        choice = choose_merging(
            self.attempt.config,
            known_inventory(self.attempt.config.model, self.attempt.home),
            placement.device,
            lengths_of(data.train),
            checkpoint_merged=before.merged if before is not None else None,
        )
        merged = -self.group.largest(-choice.merged)  # what all processes have room for
        if choice.expected_bytes is not None and merged == choice.merged > 1:
            self.events.predicted_bytes = choice.expected_bytes
        optimizations = dict(assembly.optimizations) | {"merged_passes": choice.why_not}
        return replace(assembly.with_settings(merged=merged), optimizations=optimizations)

    def _with_common_order(self, assembly: Assembly, rows_sha256: str) -> tuple[Assembly, RowPlan]:
        """Give every process the order of rows that the first one begins or continues, even where its own device differs."""
        settings = assembly.setup.settings
        checkpoint = self.resumed_from
        pinned, name = (checkpoint.manifest.row_plan, checkpoint.folder.name) if checkpoint is not None else (None, "")
        decide = lambda: choose_row_order(settings, rows_sha256, pinned, name).model_dump_json()  # noqa: E731
        order = RowOrder.model_validate_json(self.group.broadcast_from_main(decide))
        assembly = assembly.with_settings(pinned_order=order)
        return assembly, row_plan(assembly.setup.settings, rows_sha256)

    def _report_parameters(
        self, parameters: tuple[int, int], precision: TrainingDtypes, placement: Placement, assembly: Assembly
    ) -> None:
        trainable, total = parameters
        share = f"{100 * trainable / total:.4f}"  # as PEFT prints it
        print(f"trainable params: {trainable:,} || all params: {total:,} || trainable%: {share}", flush=True)
        for name, why_not in assembly.optimizations.items():
            print(f"{name}: {why_not or 'used'}", flush=True)
        self.events.emit(
            ParametersData(
                trainable=trainable,
                total=total,
                compute_dtype=precision.compute_name,
                device=placement.device_name,
                attn_implementation=assembly.attention,
                optim=optimizer_name(self.attempt.config.training.optim, placement.torch_device.type),
                merged_passes=assembly.setup.settings.merged,
                batching=assembly.setup.settings.batching,
                optimizations=dict(assembly.optimizations),
            )
        )


def _require_pinned_data(pinned: str | None, dataset: DatasetConfig, report: DatasetReport) -> None:
    """Refuse to train on other rows than those that were checked when the run was queued.

    Steps, held-out rows and the estimate depend on those; after a resume, a checkpoint's position in the data would mean
    other rows.
    """
    if pinned is not None and report.fingerprint and pinned != report.fingerprint:
        raise DatasetError(
            f"The rows of {dataset.source} differ from those that this run was queued with; {report.kept:,} are usable now.",
            "Put the data back as it was and resume, or start a new run. For a dataset on the Hub, set dataset.revision.",
        )
