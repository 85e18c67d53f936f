"""One attempt at one run, from the saved configuration to the saved adapter."""

import contextlib
import functools
import time

from loratory.engine.config.objectives import objective_of
from loratory.engine.config.optimizations import is_wanted
from loratory.engine.config.rules import answer_tokens, keeps_best
from loratory.engine.quantities import size
from loratory.engine.runs.checkpoints import Checkpoint, Manifest, list_checkpoints
from loratory.engine.runs.disk import QuotaWatch
from loratory.engine.runs.history.events import BaseWeightsData, EvalData, StepData
from loratory.engine.training import faults
from loratory.engine.training.answers import PromptAnswers, choose_prompts
from loratory.engine.training.batching.steps import choose_rows
from loratory.engine.training.build import training_arguments
from loratory.engine.training.callbacks import LOG_SECONDS, RunCallback, TrainerHooks
from loratory.engine.training.checkpoints import folder as checkpoints
from loratory.engine.training.checkpoints.state_files import count_parameters, load_trained, save_adapter, trained_bytes
from loratory.engine.training.distribution import trained_weights
from loratory.engine.training.failure import StopRequests, check_held_out, check_loss
from loratory.engine.training.loops import LOOPS
from loratory.engine.training.loops.rollouts import StopInRolloutError
from loratory.engine.training.loops.supervised import SupervisedLoop
from loratory.engine.training.objectives.reference import ReferenceModel
from loratory.engine.training.preparation import Attempt, Preparation, PreparedRun, StoppedBeforeTrainingError
from loratory.engine.training.reporting import RunEvents

_POLL_SECONDS = 0.2


class TrainingSession:
    """Runs one attempt, reports it to `events`, and checks `requests` for a reason to end."""

    def __init__(self, attempt: Attempt, events: RunEvents, requests: StopRequests) -> None:
        self._config = attempt.config
        self._folder = attempt.folder
        self._events = events
        self._requests = requests
        self._preparation = Preparation(attempt, events, requests)
        self._first_loss: float | None = None
        self._last_held_out: EvalData | None = None
        self._reported_base: BaseWeightsData | None = None
        self._quota = QuotaWatch(attempt.home, attempt.folder.path.parent.name)
        self._quota_reached = ""  # the reason, once there was no room for a checkpoint
        self._saves_fewer = False

    def run(self) -> None:
        """Train to the end, or until a stop is requested.

        Raises:
            EngineError: If something fails in a known way; see `loratory.engine.training.failure` for everything else.
            CancelledError: If the run was ended at once.
        """
        try:
            self._train(self._preparation.run())
        except (StoppedBeforeTrainingError, StopInRolloutError):
            resumed = self._preparation.resumed_from
            done = "Nothing was trained yet."
            if resumed is not None:
                done = f"Nothing more was trained; the checkpoint of step {resumed.step:,} remains."
            self._events.stopped(f"{self._requests.reason} {done}", self._requests.stopped_by)

    def _train(self, prepared: PreparedRun) -> None:
        group = self._preparation.group
        trainer, callback = self._build_trainer(prepared)
        self._begin(trainer, callback, prepared)
        prepared.replaced.clear()  # frees its memory
        step = self._run_steps(trainer, callback)
        self._events.memory()
        if keeps_best(self._config.training):
            checkpoints.go_back_to_best(trainer, step, self._folder.checkpoints, self._events, group)
        self._finish(trainer, callback, prepared, step)

    def _begin(self, trainer: SupervisedLoop, callback: RunCallback, prepared: PreparedRun) -> None:
        """Restore the progress of a resumed run; measure the base before the first step of a new one."""
        resumed_from = self._preparation.resumed_from
        if prepared.reference is not None:
            message = "Computing the reference log-probabilities of all pairs."
            self._events.status("preparing", message, trainer.total_steps)
            trainer.precompute_reference(prepared.reference)
        if resumed_from is not None:
            trainer.restore_progress(resumed_from.folder)
            callback.stopped_early = callback.has_stalled()
        elif len(prepared.data.held_out):
            self._measure_base(trainer, prepared)

    def _run_steps(self, trainer: SupervisedLoop, callback: RunCallback) -> int:
        """Train; return the last step. If a resumed run lacks its adapter only, load the weights of its checkpoint."""
        resumed_from, total = self._preparation.resumed_from, trainer.total_steps
        if resumed_from is None:
            self._events.status("training", f"Training: {total:,} steps.", total)
            trainer.train()
        elif resumed_from.step < total and not callback.stopped_early:
            self._events.status("training", f"Training from step {resumed_from.step}: {total:,} steps.", total)
            trainer.train(resume_from_checkpoint=str(resumed_from.folder))
        else:
            load_trained(trainer.model, resumed_from.folder)
            return resumed_from.step
        return int(trainer.state.global_step)

    def _finish(self, trainer: SupervisedLoop, callback: RunCallback, prepared: PreparedRun, step: int) -> None:
        """Save the result, where the quota has room for it, and report how the run ended."""
        total = trainer.total_steps
        if self._quota_reached and step < total and not callback.stopped_early:
            if self._preparation.group.broadcast_from_main(lambda: self._room_for_result(trainer)):
                self._save_result(trainer, prepared)
            message = f"{self._quota_reached} Stopped after step {step:,} of {total:,}."
            self._events.stopped(message, "disk_limit", total)
            return
        self._save_result(trainer, prepared)
        if callback.stopped_on_request:
            message = f"{self._requests.reason} Saved after step {step:,} of {total:,}."
            self._events.stopped(message, self._requests.stopped_by, total)
        else:
            early = " The held-out loss had stopped improving." if callback.stopped_early else ""
            self._events.status("finished", f"Finished after step {step:,}.{early}", total)

    def _build_trainer(self, prepared: PreparedRun) -> tuple[SupervisedLoop, RunCallback]:
        training, setup, group = self._config.training, prepared.assembly.setup, self._preparation.group
        objective = objective_of(self._config)
        rows = choose_rows(prepared.data, setup.settings, objective)
        vocabulary = int(prepared.model.config.get_text_config().vocab_size) if objective.learns_answers else None
        is_timed = prepared.placement.torch_device.type == "cuda" and is_wanted("timed_logging")
        trainer = LOOPS[objective.loop](
            model=prepared.model,
            args=training_arguments(training, self._folder.checkpoints, prepared.precision, prepared.placement),
            tokenizer=prepared.tokenizer,
            rows=rows,
            setup=setup,
            hooks=TrainerHooks(),
        )
        callback = RunCallback(
            training,
            bool(rows.held_out),
            stop_requested=trainer.stop_voted,
            progress=lambda: trainer.progress,
            log_seconds=LOG_SECONDS if is_timed else 0.0,
            log_voted=trainer.log_voted if group.world_size > 1 else None,
        )
        trainer.add_callback(callback)
        trainer.hooks = TrainerHooks(
            on_logged=functools.partial(self._on_logged, vocabulary=vocabulary),
            answer=self._prompt_answers(prepared).answer,
            on_rollout=self._events.emit,
            on_measured=self._on_measured,
            save=lambda: self._save_checkpoint(trainer, prepared),
            between_passes=self._requests.check_cancel,
            stop_wanted=self._requests.stop_wanted,
            log_vote=callback.log_vote if group.is_main else lambda: 0,
        )
        return trainer, callback

    def _prompt_answers(self, prepared: PreparedRun) -> PromptAnswers:
        """Return what answers prompts in evaluations: the first process, where it has all weights."""
        training, placement = self._config.training, prepared.placement
        most = answer_tokens(training, count_parameters(prepared.model)[1], placement.torch_device.type)
        if most and placement.sharded:
            self._events.warn("No prompts are answered in evaluations, because FSDP divides the weights.")
        choose = functools.partial(choose_prompts, training.eval_prompts, prepared.data.held_out, prepared.tokenizer)
        is_off = placement.sharded or not placement.group.is_main
        images = prepared.assembly.setup.images
        return PromptAnswers(self._events, prepared.tokenizer, functools.cache(choose), 0 if is_off else most, images)

    def _measure_base(self, trainer: SupervisedLoop, prepared: PreparedRun) -> None:
        """Measure the held-out loss before the first step, without an adapter that already changes the model."""
        self._events.status("evaluating", "Measuring the base model on held-out rows.", trainer.total_steps)
        adapter = self._config.adapter
        # The start of a preference run is its reference, so it is measured.
        is_other = adapter.warm_start is not None and not objective_of(self._config).compares(self._config)
        off = not adapter.traits.starts_as_identity or is_other
        with ReferenceModel(prepared.replaced).replacing(trainer.model) if off else contextlib.nullcontext():
            first = trainer.measure_held_out()
        check_held_out(0, first.eval_loss)
        self._events.held_out(first.model_copy(update={"adapter_disabled": off}))
        self._preparation.check_requests()

    def _save_result(self, trainer: SupervisedLoop, prepared: PreparedRun) -> None:
        self._events.status("saving", "Saving the trained weights.")
        weights = trained_weights(trainer.model) if prepared.placement.sharded else None
        while prepared.base.is_alive() and not self._requests.stop_wanted():
            self._requests.check_cancel()
            prepared.base.join(_POLL_SECONDS)
        self._report_base(prepared)
        if self._preparation.group.is_main:
            dtype = prepared.precision.compute
            save = functools.partial(save_adapter, trainer.model, prepared.tokenizer, dtype=dtype, weights=weights)
            self._events.when_there_is_room(lambda: checkpoints.replace_folder(self._folder.adapter, save))
        self._preparation.group.wait()
        faults.reached("session:adapter_saved")

    def _report_base(self, prepared: PreparedRun) -> None:
        """Report the base's weight files before anything is saved; again once they are hashed."""
        base = BaseWeightsData(files=prepared.base.files)
        if base != self._reported_base:
            self._reported_base = base
            self._events.emit(base)

    def _on_logged(self, step: StepData, vocabulary: int | None) -> None:
        if self._first_loss is None:
            self._first_loss = step.loss
            self._events.memory()
        self._events.step(step)
        check_loss(step.step, step.loss, step.grad_norm, self._first_loss, vocabulary)
        faults.reached(f"training:step-{step.step}")

    def _on_measured(self, evaluation: EvalData) -> None:
        self._last_held_out = evaluation
        self._events.held_out(evaluation)

    def _save_checkpoint(self, trainer: SupervisedLoop, prepared: PreparedRun) -> None:
        began, group = time.perf_counter(), self._preparation.group
        last, folder = self._last_held_out, self._folder.checkpoints
        step, best_step = int(trainer.state.global_step), trainer.progress.best_step
        manifest = Manifest(
            step=step,
            files={},
            event_seq=self._events.last_seq,
            eval_loss=last.eval_loss if last is not None and last.step == step else None,
            best=step == best_step,
            compute_dtype=prepared.precision.compute_name,
            row_plan=prepared.row_plan,
        )
        self._quota_reached = group.broadcast_from_main(lambda: self._make_room(trainer))
        if self._quota_reached:
            trainer.control.should_training_stop = True
            return
        gathered_state = trainer.gather_state()
        if group.is_main:
            self._report_base(prepared)
            fill = functools.partial(trainer.write_state, gathered_state=gathered_state)
            write = functools.partial(checkpoints.write_checkpoint, folder, manifest, fill)
            self._events.when_there_is_room(lambda: self._report_checkpoint(write(), began))
            self._quota.count(-checkpoints.rotate(folder, self._config.training.save_total_limit, best_step))
            checkpoints.forget_damaged(folder)
        group.wait()

    def _report_checkpoint(self, checkpoint: Checkpoint, began: float) -> None:
        self._quota.count(checkpoint.size_bytes)
        self._events.checkpoint(checkpoint, time.perf_counter() - began)

    def _make_room(self, trainer: SupervisedLoop) -> str:
        """Delete older checkpoints where the person's quota has no room for one more and the result; return what lacks."""
        folder = self._folder.checkpoints
        weights, optimizer = trained_bytes(trainer.model, trainer.optimizer)
        newest = max((checkpoint.size_bytes for checkpoint in list_checkpoints(folder)[-1:]), default=0)
        checkpoint_bytes = max(weights + optimizer, newest)
        room = self._quota.room(checkpoint_bytes + weights)
        if room is None:
            return ""
        missing = checkpoint_bytes + weights - room.bytes
        freed = checkpoints.rotate(folder, 1, trainer.progress.best_step, missing)
        self._quota.count(-freed)
        if freed and not self._saves_fewer:
            self._saves_fewer = True
            self._events.warn(f"{room.use}; older checkpoints are deleted to make room.", "disk_limit")
        if freed >= missing:
            return ""
        return f"{room.use}, and there is no room for a checkpoint of {size(checkpoint_bytes)} and the result."

    def _room_for_result(self, trainer: SupervisedLoop) -> str:
        """Return text if the result fits, since processes broadcast text; empty if it does not."""
        weights, _ = trained_bytes(trainer.model, trainer.optimizer)
        room = self._quota.room(weights)
        return "yes" if room is None or weights <= room.bytes else ""
