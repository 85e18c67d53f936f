"""TRL's `SFTTrainer` with our batches, our loss, our measurements and our checkpoints.

TRL and transformers own the loop: optimizer, schedule, clipping, accumulation across devices. Replaced are general parts
that this program does not need: tokenizing, padding, scoring of masked positions, metrics over them, and pickled
checkpoints.
"""

import contextlib
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers.trainer_callback import PrinterCallback
from trl import SFTTrainer

from loratory.engine.data.step_plan import EpochPlanner
from loratory.engine.runs.history.events import EvalData, StepData
from loratory.engine.training import faults
from loratory.engine.training.batching.steps import (
    StepBatch,
    StepBatches,
    StepOrder,
    TrainerRows,
    TrainerSetup,
)
from loratory.engine.training.callbacks import LoggedInterval, MethodSteps, SkippedSteps, TrainerHooks, TrainingProgress
from loratory.engine.training.checkpoints import state_files
from loratory.engine.training.checkpoints.state_files import GatheredState
from loratory.engine.training.distribution import trained_weights, whole
from loratory.engine.training.failure import check_held_out, is_out_of_memory
from loratory.engine.training.objectives.reference import PairsWithReference, ReferenceCache
from loratory.engine.training.ops.loss import causal_lm_of
from loratory.engine.training.passes import ModelPasses, StepCounts, Votes, add_tensors
from loratory.engine.training.placement import ProcessGroup


class SupervisedLoop(SFTTrainer):  # type: ignore[misc]
    """Trains a prepared model, whose loss is attached (`loratory.engine.training.ops.loss`), on tokenized rows.

    Its arguments come from `loratory.engine.training.build`. Callbacks of transformers decide when to log, measure, save and stop.
    """

    def __init__(
        self, model: Any, args: Any, tokenizer: Any, rows: TrainerRows, setup: TrainerSetup, hooks: TrainerHooks
    ) -> None:
        self._rows = rows
        self._setup = setup
        self.hooks = hooks
        self.progress = TrainingProgress()
        self._interval = LoggedInterval()
        self._merging_disabled = False  # merged passes did not fit
        self._group = ProcessGroup(setup.settings.rank, setup.settings.world_size)
        self._planner = EpochPlanner(rows.train_lengths, setup.settings)
        weights = {name: p.data for name, p in model.named_parameters() if p.requires_grad}
        forward = causal_lm_of(model).forward
        super().__init__(
            model=model,
            args=args,
            # Only its length counts: our loader finds the rows by number.
            train_dataset=Dataset.from_dict({"row": range(len(rows.train))}),
            processing_class=tokenizer,
            data_collator=lambda batch: batch,
        )
        # TRL casts trained weights to bfloat16 on quantized bases, and wraps the model's forward in a loss of its own.
        for name, parameter in self.model.named_parameters():
            if name in weights:
                parameter.data = weights[name].to(parameter.device)
        causal_lm_of(self.model).forward = forward
        self._passes = ModelPasses(self.model, setup, self.accelerator, self.args.device)
        self._counts = StepCounts(self.accelerator, self.args.device)
        self.remove_callback(PrinterCallback)
        self._skipped_steps = SkippedSteps(self._loss_scale)
        self.add_callback(self._skipped_steps)
        self.add_callback(MethodSteps(setup.method, self.model, self.total_steps))

    @property
    def total_steps(self) -> int:
        """Return the optimizer steps of the whole run."""
        if self.args.max_steps > 0:
            return int(self.args.max_steps)
        return math.ceil(float(self.args.num_train_epochs) * self._planner.steps_per_epoch)

    @property
    def _batches(self) -> StepBatches:
        return StepBatches(self._rows.train, self._setup)

    @property
    def _planned_rows(self) -> StepBatches:
        """The rows that the steps of an epoch number."""
        return self._batches

    def get_train_dataloader(self) -> Any:
        """Return batches of one optimizer step each, with this process's share of it."""
        batches = self._planned_rows
        order = StepOrder(self._planner, lambda: int(self.state.global_step) // self._planner.steps_per_epoch)
        return DataLoader(batches, batch_sampler=order, collate_fn=lambda batch: batch, generator=torch.Generator())

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train, and count the last steps."""
        result = super().train(*args, **kwargs)
        self._count_progress()
        return result

    def stop_voted(self) -> bool:
        """Return whether to stop: because this process wants to, or one of several did before the last step."""
        wants = self.hooks.stop_wanted
        if self.accelerator.num_processes == 1:
            return wants()
        if not self._counts.has_begun:
            return self._group.largest(wants()) > 0
        votes = self._counts.latest_votes()
        return votes is not None and votes.stops > 0

    def log_voted(self) -> int | None:
        """Return the first process's vote on logging before the last step; None if there is none yet."""
        votes = self._counts.latest_votes()
        return None if votes is None else votes.logs

    def _count_progress(self) -> None:
        trained_tokens, tokens = self._counts.take()
        self.progress.trained_tokens += trained_tokens
        self.progress.tokens += tokens
        self._interval.tokens += tokens

    def floating_point_ops(self, inputs: Any) -> int:  # noqa: ARG002
        """Return 0: the count is not used."""
        return 0

    def training_step(self, model: Any, inputs: StepBatch, num_items_in_batch: Any = None) -> torch.Tensor:  # noqa: ARG002
        """Run all passes of one optimizer step, forward and backward; return the mean loss over its terms.

        If merged passes run out of memory, the step is repeated and the run continues with the configured passes.
        """
        if self._merging_disabled:
            inputs = self._batches.split_merged(inputs)
        metrics = self._interval.metrics
        try:
            return self._train_step(model, inputs)
        except RuntimeError as error:
            may_divide = self._setup.settings.merged > 1 and not self._merging_disabled
            if not may_divide or self.accelerator.num_processes > 1 or not is_out_of_memory(error):
                raise
        # Not in `except`, where the error still holds the tensors of the step.
        print("Memory ran out with merged passes; the run continues with passes of the configured size.", flush=True)
        self._merging_disabled, self._interval.metrics = True, metrics
        model.zero_grad(set_to_none=True)
        if self.args.device.type == "cuda":
            torch.cuda.empty_cache()
        return self._train_step(model, self._batches.split_merged(inputs))

    def _train_step(self, model: Any, inputs: StepBatch) -> torch.Tensor:
        model.train()
        terms = self._passes.terms(inputs.passes)
        votes = Votes(int(self.hooks.stop_wanted()), self.hooks.log_vote())
        scales = self._counts.begin(terms, inputs.trained_tokens, inputs.tokens, votes)
        loss = torch.zeros((), dtype=torch.float32, device=self.args.device)
        spare = min(inputs.passes, key=lambda batch: batch.tokens).untrained
        passes = self._passes.pad_pass_count(inputs.passes, spare, inputs.planned.most_passes)
        estimate = self._passes.estimate(model, passes)
        with self._setup.method.step(self.model):
            for number, cpu_pass in enumerate(passes):
                self.hooks.between_passes()
                faults.reached("training:pass")
                batch = cpu_pass.to(self.args.device)
                is_last = number == len(passes) - 1
                # Sharded gradients are divided after each pass: whole ones of all layers would take the memory that is saved.
                with (
                    contextlib.nullcontext() if is_last or self._passes.is_sharded else self.accelerator.no_sync(model)
                ):
                    # Averaged by terms over the whole step, as TRL does; DDP divides by the processes once more.
                    losses = self._passes.losses(model, batch, estimate)
                    parts = [total * scale for total, scale in zip(losses.sums, scales, strict=True)]
                    part = sum(parts[1:], start=parts[0])
                    if is_last and (penalty := self._setup.method.penalty(self.model)) is not None:
                        part = part + penalty
                    if faults.is_armed(f"training:loss-{self.state.global_step + 1}"):
                        part = part * float("nan")
                    self.accelerator.backward(part)
                loss += part.detach().to(loss.device)  # the head may be on another device
                self._interval.metrics = add_tensors(self._interval.metrics, losses.metrics)
        self._counts.end()
        return loss

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """Record on the device whether the norm is finite; steps that are not logged are checked with the next logged one."""
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if isinstance(norm, torch.Tensor) and self._scaler is None and not self._passes.is_sharded:
            self._interval.nonfinite_flag = add_tensors(self._interval.nonfinite_flag, norm.detach() * 0.0)
        return norm

    @property
    def _scaler(self) -> Any:
        return getattr(self.accelerator, "scaler", None)

    def _loss_scale(self) -> torch.Tensor | None:
        return None if self._scaler is None else self._scaler._get_scale_async()  # get_scale waits for the GPU

    def precompute_reference(self, cache: ReferenceCache) -> None:
        """Add the reference's log-probabilities to every pair, from a cache or from one pass over all of them."""
        rows = self._rows
        train, held_out = (self._with_reference(pairs, cache) for pairs in (rows.train, rows.held_out))
        self._rows = replace(rows, train=train, held_out=held_out)

    def _with_reference(self, pairs: Sequence[Any], cache: ReferenceCache) -> Sequence[Any]:
        values = cache.load(pairs) if len(pairs) else torch.zeros(0, 2)
        if self._group.largest(int(values is None)):
            values = self._passes.reference_log_probabilities(self.model, pairs, self.hooks.between_passes)
            if self._setup.settings.rank == 0:
                cache.save(pairs, values)
        assert values is not None
        return PairsWithReference(pairs, values)

    def measure_held_out(self) -> EvalData:
        """Return the mean loss over the terms of the held-out rows: in nats over trained tokens, or over pairs."""
        start = time.perf_counter()
        rows = self._rows.held_out
        totals, metrics = self._passes.held_out_losses(self.model, rows, self.hooks.between_passes)
        with self._passes.answering(self.model) as model:
            self.hooks.answer(model, int(self.state.global_step))
        seconds = time.perf_counter() - start
        self._interval.paused_seconds += seconds
        return EvalData(
            step=int(self.state.global_step),
            eval_loss=float((totals[0] / totals[1].clamp_min(1)).sum()),
            eval_tokens=int(totals[1, 0]),
            rows=len(rows),
            seconds=seconds,
            metrics=metrics,
        )

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Measure the held-out loss at this step, and record whether it is the best so far.

        Raises:
            DivergedError: If it is NaN or infinite.
        """
        evaluation = self.measure_held_out()
        if faults.is_armed(f"held_out:step-{evaluation.step}"):
            evaluation = evaluation.model_copy(update={"eval_loss": math.nan})
        check_held_out(evaluation.step, evaluation.eval_loss)
        self.progress.count(evaluation)
        self.hooks.on_measured(evaluation)
        metrics = {"eval_loss": evaluation.eval_loss}
        self.control: Any = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:  # noqa: ARG002
        """Report one logged step; other logs of the loop are not used."""
        if "loss" not in logs:
            return
        now = time.perf_counter()
        seconds = now - self._interval.began - self._interval.paused_seconds
        norm = logs.get("grad_norm")
        if norm is not None and self._interval.nonfinite_flag is not None:
            norm += float(self._interval.nonfinite_flag)
        self._count_progress()
        step = StepData(
            step=int(self.state.global_step),
            epoch=round(float(self.state.epoch or 0.0), 6),
            loss=logs["loss"],
            learning_rate=logs["learning_rate"],
            grad_norm=None if norm is None or self._skipped_steps.in_a_row else float(norm),
            tokens=self.progress.tokens,
            trained_tokens=self.progress.trained_tokens,
            tokens_per_second=self._interval.tokens / max(seconds, 1e-9),
            metrics=self._step_metrics(),
        )
        self._interval = LoggedInterval(now)
        self.hooks.on_logged(step)
        self.control = self.callback_handler.on_log(self.args, self.state, self.control, logs)

    def _step_metrics(self) -> dict[str, float]:
        """Return the metrics since the last logged step."""
        return self._passes.means(self._interval.metrics)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:  # noqa: ARG002
        began = time.perf_counter()
        self.hooks.save()
        self._interval.paused_seconds += time.perf_counter() - began

    def gather_state(self) -> GatheredState:
        """Gather what `write_state` needs from all processes; all of them must call this."""
        self._count_progress()
        return GatheredState(
            random=self._group.gather(state_files.random_state()),
            weights=trained_weights(self.model) if self._passes.is_sharded else None,
            optimizer=whole(self.optimizer.state_dict()) if self._passes.is_sharded else None,
        )

    def write_state(self, folder: Path, gathered_state: GatheredState) -> None:
        """Write the training state into a folder, in the first process."""
        state_files.save_trained(self.model, self.processing_class, folder, gathered_state.weights)
        optimizer = self.optimizer.state_dict() if gathered_state.optimizer is None else gathered_state.optimizer
        state_files.save_nested(optimizer, folder / state_files.OPTIMIZER_FILE)
        state_files.save_plain(self.lr_scheduler.state_dict(), folder / state_files.SCHEDULER_FILE)
        for rank, state in enumerate(gathered_state.random):
            (folder / state_files.RANDOM_FILE.format(rank=rank)).write_bytes(state)
        if self._scaler is not None:
            state_files.save_plain(self._scaler.state_dict(), folder / state_files.SCALER_FILE)
        state_files.save_plain(vars(self.progress), folder / state_files.PROGRESS_FILE)
        self.state.save_to_json(str(folder / "trainer_state.json"))

    def restore_progress(self, folder: Path) -> None:
        """Restore the progress of a checkpoint; `train` also restores everything else."""
        self.progress = TrainingProgress(**state_files.load_plain(folder / state_files.PROGRESS_FILE))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        folder = Path(resume_from_checkpoint)
        state_files.load_trained(self.model if model is None else model, folder)
        self.restore_progress(folder)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            folder = Path(checkpoint)
            state_files.load_optimizer(self.optimizer, folder / state_files.OPTIMIZER_FILE)
            self.lr_scheduler.load_state_dict(state_files.load_plain(folder / state_files.SCHEDULER_FILE))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            own = Path(checkpoint) / state_files.RANDOM_FILE.format(rank=self._setup.settings.rank)
            if own.is_file():  # fewer processes may have written it
                state_files.load_random_state(own)

    def _load_scaler(self, checkpoint: str | None) -> None:
        if checkpoint is not None and self._scaler is not None:
            path = Path(checkpoint) / state_files.SCALER_FILE
            if path.is_file():
                self._scaler.load_state_dict(state_files.load_plain(path))
