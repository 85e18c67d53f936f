"""One attempt at one run, from the saved configuration to the saved adapter."""

import contextlib
import functools
import random
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import torch

from engine.config.dataset import DatasetConfig
from engine.config.rules import keeps_best, optimizer_name
from engine.config.run import RunConfig
from engine.data.contract import DatasetReport
from engine.data.hub import reads_from_hub
from engine.data.passes.prepare import PreparedDataset, prepare_dataset
from engine.errors import DatasetError
from engine.hardware.libraries import note_architectures
from engine.inspector.worker.load_tokenizer import load_tokenizer
from engine.models.prepared import ModelProgress
from engine.models.source import resolve_model
from engine.paths import LoratoryHome
from engine.processes.environment import Access, give_up_access
from engine.runs.checkpoints import Checkpoint, RowOrder, RowPlan
from engine.runs.history.events import DataReportData, ParametersData, ResumedData
from engine.runs.provenance import read_provenance, run_title
from engine.runs.run import RunFolder
from engine.training import faults
from engine.training.assembly import Assembly, assemble
from engine.training.batching.plan import row_plan, settled_order
from engine.training.batching.steps import choose_rows
from engine.training.build import add_adapter, load_model, training_arguments
from engine.training.callbacks import HeldOutLoss, LoggedStep, RunCallback, TrainerHooks
from engine.training.checkpoints import folder as checkpoints
from engine.training.checkpoints.folder import (
    find_checkpoint,
    go_back_to_best,
    open_checkpoint,
)
from engine.training.checkpoints.state_files import random_state
from engine.training.checkpoints.trained_weights import count_parameters, load_trained, parameters_line, save_adapter
from engine.training.checkpoints.warm_start import find_warm_start, load_warm_start, untrained_base
from engine.training.device_memory import DeviceMemory
from engine.training.failure import check_held_out, check_loss
from engine.training.placement import Placement, choose_placement, passed_over
from engine.training.precision import Precision, apple_notes, choose_precision, resumed_notes
from engine.training.process_group import SINGLE_PROCESS
from engine.training.reporting import RunEvents
from engine.training.signals import StopRequests
from engine.training.trackers import start_trackers
from engine.training.trainer import LoratoryTrainer

Outcome = Literal["finished", "stopped"]

# How long processes wait for one that measures, saves, or waits for room on the disk.
_PATIENCE = timedelta(days=2)


@dataclass(frozen=True)
class Attempt:
    """What an attempt is about."""

    folder: RunFolder
    home: LoratoryHome
    config: RunConfig
    number: int


def home_of(folder: Path) -> LoratoryHome:
    """The home that a run directory stands in: `<home>/runs/<owner>/<run>`."""
    return LoratoryHome(folder.resolve().parents[2])


class StoppedBeforeTrainingError(BaseException):
    """Somebody asked to stop before there was anything to save; passes through code that takes any `Exception`."""


class TrainingSession:
    """Runs one attempt.

    Args:
        attempt: What to do.
        events: Told of everything.
        interruption: Asked whether to go on.
    """

    def __init__(self, attempt: Attempt, events: RunEvents, interruption: StopRequests) -> None:
        self._attempt = attempt
        self._config = attempt.config
        self._folder = attempt.folder
        self._events = events
        self._interruption = interruption
        self._first_loss: float | None = None
        self._vocabulary = 2
        self._measured: tuple[int, float] | None = None
        self._trainer: LoratoryTrainer | None = None
        self._resumed_from: Checkpoint | None = None
        self._companions = SINGLE_PROCESS
        self._precision: Precision | None = None
        self._row_plan: RowPlan | None = None
        self._replaced: dict[str, torch.Tensor] = {}  # by a warm start

    def run(self) -> Outcome:
        """Train to the end, or until somebody stops it; returns which.

        Raises:
            EngineError: If something cannot work; see `engine.training.failure` for everything else.
            CancelledError: If somebody ended the run at once.
        """
        try:
            return self._run()
        except StoppedBeforeTrainingError:
            resumed = self._resumed_from
            done = "Nothing was trained yet."
            if resumed is not None:
                done = f"Nothing more was trained; the checkpoint of step {resumed.step:,} stands."
            self._events.stopped(f"{self._interruption.reason} {done}", self._interruption.stopped_by)
            return "stopped"

    def _run(self) -> Outcome:
        config, events = self._config, self._events
        note_architectures(self._attempt.home, str(torch.__version__), torch.cuda.get_arch_list())
        placement = choose_placement(config)
        events.device_memory = DeviceMemory.of(placement)
        self._meet(placement)
        if self._companions.is_first:
            events.trackers = start_trackers(config, self._folder.path, run_title(config), events.warn)
        resumed_from = self._resumed_from = self._find_checkpoint()
        begun_in = resumed_from.manifest.compute_dtype if resumed_from is not None else None
        precision = self._precision = choose_precision(config, placement.device, begun_in)
        for note in (*apple_notes(config, placement.device), *resumed_notes(config, placement.device, begun_in)):
            events.warn(note, "precision")
        for note in passed_over(config, placement, self._attempt.home):
            events.warn(note, "device")
        events.predicted_bytes = read_provenance(self._folder).predicted_bytes
        events.status("loading_model", f"Looking for {config.model.id}.")
        source = self._companions.main_process_first(
            lambda: resolve_model(config.model, self._attempt.home, self._on_model_progress)
        )
        if not reads_from_hub(config.dataset):
            self._give_up_hub_access()
        tokenizer, template = load_tokenizer(source)
        self._go_on()
        data = self._read_data(tokenizer)
        self._give_up_hub_access()
        for note in template.notes:  # the Data tab shows them before the start
            print(note, flush=True)
        for warning in template.warnings:
            events.warn(warning, "template")
        self._go_on()
        events.status("loading_model", f"Loading {source.name}.")
        torch.manual_seed(config.training.seed)
        random.seed(config.training.seed)
        faults.reached("session:load_model")
        model = load_model(source, config, precision, placement)
        events.status("preparing", f"Preparing {config.method_name}.")
        model = add_adapter(model, config, source)
        if config.adapter.warm_start is not None and resumed_from is None:
            self._replaced = load_warm_start(
                model, find_warm_start(config.adapter.warm_start, self._folder.path.parent)
            )
        assembly = assemble(model, config, precision, placement, data.train, tokenizer.pad_token_id)
        for note in assembly.notes:
            events.warn(note, "batching")
        assembly = self._with_common_order(assembly, data.train.sha256())
        self._say_parameters(model, precision, placement, assembly)
        self._vocabulary = int(model.config.get_text_config().vocab_size)
        self._go_on()
        trainer = self._build_trainer(model, tokenizer, data, assembly, precision, placement)
        self._trainer = trainer
        callback = next(c for c in trainer.callback_handler.callbacks if isinstance(c, RunCallback))
        return self._train(trainer, callback, resumed_from, tokenizer, precision)

    def _train(
        self,
        trainer: LoratoryTrainer,
        callback: RunCallback,
        resumed_from: Checkpoint | None,
        tokenizer: Any,
        precision: Precision,
    ) -> Outcome:
        events, total = self._events, trainer.total_steps
        if resumed_from is None and trainer.measures:
            events.status("evaluating", "Measuring the base model on held-out rows.", total)
            # Both start as something else than no change, so that the base is measured without them.
            adapter = self._config.adapter
            off = not adapter.traits.starts_as_identity or adapter.warm_start is not None
            with untrained_base(trainer.model, self._replaced) if off else contextlib.nullcontext():
                first = trainer.measure_held_out()
            self._replaced = {}
            check_held_out(0, first.loss)
            events.held_out(0, first, adapter_disabled=off)
            self._go_on()
        if resumed_from is not None:
            trainer.restore_progress(resumed_from.folder)
            callback.stopped_early = callback.has_stalled()
        if resumed_from is None or not (resumed_from.step >= total or callback.stopped_early):
            done = f" from step {resumed_from.step}" if resumed_from else ""
            events.status("training", f"Training{done}: {total:,} steps.", total)
            trainer.train(resume_from_checkpoint=str(resumed_from.folder) if resumed_from else None)
        else:  # everything was learned; only the adapter is missing
            load_trained(trainer.model, resumed_from.folder)
        step = int(trainer.state.global_step) or (resumed_from.step if resumed_from else 0)
        events.memory()
        if keeps_best(self._config.training):
            go_back_to_best(trainer, step, self._folder.checkpoints, events, self._companions)
        events.status("saving", "Saving what was trained.")
        if self._companions.is_first:
            save = lambda folder: save_adapter(trainer.model, tokenizer, folder, precision.compute)  # noqa: E731
            events.when_there_is_room(lambda: checkpoints.replace_folder(self._folder.adapter, save))
        self._companions.wait()
        faults.reached("session:adapter_saved")
        if callback.stopped_on_request:
            done = f"Saved after step {step:,} of {total:,}."
            events.stopped(f"{self._interruption.reason} {done}", self._interruption.stopped_by, total)
            return "stopped"
        early = " The held-out loss had stopped improving." if callback.stopped_early else ""
        events.status("finished", f"Finished after step {step:,}.{early}", total)
        return "finished"

    # -- before training ----------------------------------------------------------------------------------------------

    def _meet(self, placement: Placement) -> None:
        """Begin to speak with the other processes of this run, where there are any."""
        self._companions = placement.companions
        if self._companions.world_size > 1:
            from accelerate import PartialState

            PartialState(cpu=placement.torch_device.type == "cpu", timeout=_PATIENCE)

    def _find_checkpoint(self) -> Checkpoint | None:
        folder = self._folder.checkpoints

        def find() -> str:
            checkpoints.sweep(folder)
            checkpoints.restore_folder(self._folder.adapter)
            found = find_checkpoint(folder, lambda message: self._events.warn(message, "checkpoint_damaged"))
            name = found.folder.name if found else ""
            if self._attempt.number > 1:
                self._events.say(ResumedData(step=found.step if found else 0, checkpoint=name or None))
            return name

        name = self._companions.broadcast_from_main(find)
        return open_checkpoint(folder / name) if name else None

    def _with_common_order(self, assembly: Assembly, rows_sha256: str) -> Assembly:
        """Give every process the order of rows that the first one begins or continues, whatever its own device does."""
        settings, resumed_from = assembly.setup.settings, self._resumed_from
        warn = functools.partial(self._events.warn, code="row_order")
        decide = functools.partial(settled_order, settings, rows_sha256, resumed_from, warn)
        order = RowOrder.model_validate_json(self._companions.broadcast_from_main(lambda: decide().model_dump_json()))
        settings = replace(settings, pinned_order=order)
        self._row_plan = row_plan(settings, rows_sha256)
        return replace(assembly, setup=replace(assembly.setup, settings=settings))

    def _on_model_progress(self, progress: ModelProgress) -> None:
        self._go_on()
        self._events.status("loading_model", progress.message)

    def _give_up_hub_access(self) -> None:
        """Forget the login once everything is here, before strangers' files are read; Trackio's Space needs it to the end."""
        if "trackio" not in self._config.training.report_to:
            give_up_access(Access.HUB)

    def _read_data(self, tokenizer: Any) -> PreparedDataset:
        config, events = self._config, self._events
        events.status("reading_data", f"Reading {config.dataset.source}.")
        data = prepare_dataset(
            config.dataset,
            seed=config.training.seed,
            max_length=config.training.max_length,
            tokenizer=tokenizer,
            home=self._attempt.home,
            on_progress=lambda _: self._go_on(),
        )
        report = data.report
        require_pinned_data(self._folder, config.dataset, report)
        trained_tokens = data.train.trained_tokens  # the report counts those of held-out rows too
        events.say(
            DataReportData(
                train_rows=len(data.train),
                eval_rows=len(data.held_out),
                dropped_rows=report.dropped,
                trained_tokens=trained_tokens,
                masked_tokens=sum(data.train.lengths()) - trained_tokens,
                truncated_rows=report.token_lengths.over_max_length if report.token_lengths else 0,
            )
        )
        return data

    def _say_parameters(self, model: Any, precision: Precision, placement: Placement, assembly: Assembly) -> None:
        trainable, total = count_parameters(model)
        print(parameters_line(trainable, total), flush=True)
        self._events.say(
            ParametersData(
                trainable=trainable,
                total=total,
                compute_dtype=precision.compute_name,
                device=placement.device_name,
                attn_implementation=assembly.attention,
                optim=optimizer_name(self._config.training.optim, placement.torch_device.type),
                batching=assembly.setup.settings.batching,
            )
        )

    def _build_trainer(
        self,
        model: Any,
        tokenizer: Any,
        data: PreparedDataset,
        assembly: Assembly,
        precision: Precision,
        placement: Placement,
    ) -> LoratoryTrainer:
        training = self._config.training
        rows = choose_rows(data, training, assembly.setup.settings)
        progress = lambda: self._trainer.progress if self._trainer else None  # noqa: E731
        return LoratoryTrainer(
            model=model,
            args=training_arguments(training, self._folder.checkpoints, precision, placement),
            tokenizer=tokenizer,
            rows=rows,
            setup=assembly.setup,
            hooks=TrainerHooks(self._logged, self._held_out, self._save, self._interruption.check_cancel),
            callbacks=[RunCallback(training, bool(rows.held_out), self._stop_wanted, progress)],
        )

    def _go_on(self) -> None:
        self._interruption.check_cancel()
        # Several processes must decide alike, which they do from the first step on.
        if self._companions.world_size == 1 and self._interruption.stop_wanted():
            raise StoppedBeforeTrainingError

    def _stop_wanted(self) -> bool:
        return self._companions.any(self._interruption.stop_wanted())

    # -- while training -----------------------------------------------------------------------------------------------

    def _logged(self, step: LoggedStep) -> None:
        if self._first_loss is None:
            self._first_loss = step.loss
            self._events.memory()
        self._events.step(step)
        check_loss(step.step, step.loss, step.grad_norm, self._first_loss, self._vocabulary)
        faults.reached(f"training:step-{step.step}")

    def _held_out(self, step: int, measured: HeldOutLoss) -> None:
        self._measured = (step, measured.loss)
        self._events.held_out(step, measured)

    def _save(self) -> None:
        trainer, precision = self._trainer, self._precision
        assert trainer is not None
        assert precision is not None
        step = int(trainer.state.global_step)
        best_step = trainer.progress.best_step
        facts = checkpoints.CheckpointFacts(
            step=step,
            event_seq=self._events.last_seq,
            eval_loss=self._measured[1] if self._measured is not None and self._measured[0] == step else None,
            best=step == best_step,
            compute_dtype=precision.compute_name,
            row_plan=self._row_plan,
        )
        random_states = self._companions.gather(random_state())
        if self._companions.is_first:
            fill = functools.partial(trainer.write_state, random_states=random_states)
            write = functools.partial(checkpoints.write_checkpoint, self._folder.checkpoints, facts, fill)
            self._events.when_there_is_room(lambda: self._events.checkpoint(write()))
            checkpoints.rotate(self._folder.checkpoints, self._config.training.save_total_limit, best_step)
            checkpoints.forget_damaged(self._folder.checkpoints)
        self._companions.wait()


def require_pinned_data(folder: RunFolder, dataset: DatasetConfig, report: DatasetReport) -> None:
    """Refuse to train on other rows than were checked when the run was filed.

    Steps, held-out rows and the estimate were all drawn from those; after a resume, a checkpoint's place in the data would
    mean other rows.

    Raises:
        DatasetError: If the rows that are kept are not the same, in the same order.
    """
    pinned = read_provenance(folder).dataset_fingerprint
    if pinned is None or not report.fingerprint or pinned == report.fingerprint:
        return
    raise DatasetError(
        f"The rows of {dataset.source} are no longer those that this run was filed with; {report.kept:,} are usable now.",
        "Put the data back as it was and resume, or start a new run. For a dataset on the Hub, set dataset.revision.",
    )
