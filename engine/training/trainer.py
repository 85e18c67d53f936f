"""TRL's `SFTTrainer` with our batches, our loss, our measurements and our checkpoints.

TRL and transformers keep the loop: optimizer, schedule, clipping, accumulation across devices. What is replaced here is
what they do for generality and this program does not need: tokenizing, padding, scoring of masked positions, metrics over
them, and checkpoints that are pickled in place.
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

from engine.data.step_plan import EpochPlanner
from engine.runs.history.events import EvalData, StepData
from engine.training import faults
from engine.training.batching.batches import PassTensors
from engine.training.batching.steps import PrefetchedSteps, StepBatch, StepBatches, StepOrder, TrainerRows, TrainerSetup
from engine.training.callbacks import LoggedInterval, MethodSteps, Progress, SkippedSteps, TrainerHooks
from engine.training.checkpoints import state_files
from engine.training.checkpoints.state_files import GatheredState
from engine.training.failure import check_held_out, is_out_of_memory
from engine.training.objectives.pairs import DirectPreference
from engine.training.objectives.precomputed import PairsWithReference, ReferenceCache
from engine.training.ops.loss import TrainedTokens, causal_lm_of
from engine.training.passes import ModelPasses
from engine.training.placement import ProcessGroup
from engine.training.sharding import reshard, trained_weights, whole
from engine.training.step_counts import StepCounts, Votes

_NOTHING = PassTensors({}, TrainedTokens(torch.zeros(0), torch.zeros(0)), 0, 0)


class LoratoryTrainer(SFTTrainer):  # type: ignore[misc]
    """Trains a prepared model, whose loss is attached (`engine.training.ops.loss`), on tokenized rows.

    Its arguments come from `engine.training.build`. Callbacks of transformers decide when to log, measure, save and stop.
    """

    def __init__(
        self,
        model: Any,
        args: Any,
        tokenizer: Any,
        rows: TrainerRows,
        setup: TrainerSetup,
        hooks: TrainerHooks,
        callbacks: Sequence[Any] = (),
    ) -> None:
        self._rows = rows
        self._setup = setup
        self.hooks = hooks
        self.progress = Progress()
        self._interval = LoggedInterval()
        self._prefetched: PrefetchedSteps | None = None
        self._passes_apart = False  # what was to be merged did not fit
        self._group = ProcessGroup(setup.settings.rank, setup.settings.world_size)
        self._planner = EpochPlanner(rows.train_lengths, setup.settings)
        trained = {name: p.data for name, p in model.named_parameters() if p.requires_grad}
        forward = causal_lm_of(model).forward
        super().__init__(
            model=model,
            args=args,
            # Only its length counts: our loader looks the rows up by number.
            train_dataset=Dataset.from_dict({"row": range(len(rows.train))}),
            processing_class=tokenizer,
            data_collator=lambda batch: batch,
            callbacks=list(callbacks),
        )
        # TRL rounds trained weights to bfloat16 on quantized bases, and puts a loss of its own before the model.
        for name, parameter in self.model.named_parameters():
            if name in trained:
                parameter.data = trained[name].to(parameter.device)
        causal_lm_of(self.model).forward = forward
        self._passes = ModelPasses(self.model, setup, self.accelerator, self.args.device)
        self._counts = StepCounts(self.accelerator, self.args.device)
        self.remove_callback(PrinterCallback)
        self._skipped = SkippedSteps(lambda: bool(self.accelerator.optimizer_step_was_skipped), self._loss_scale)
        self.add_callback(self._skipped)
        self.add_callback(MethodSteps(setup.method, self.model, self.total_steps))

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        if self.args.max_steps > 0:
            return int(self.args.max_steps)
        return math.ceil(float(self.args.num_train_epochs) * self._planner.steps_per_epoch)

    # -- batches ------------------------------------------------------------------------------------------------------

    @property
    def _batches(self) -> StepBatches:
        return StepBatches(self._rows.train, self._setup)

    def get_train_dataloader(self) -> Any:
        """Return batches of one optimizer step each: this process's share of it."""
        batches = self._batches
        order = StepOrder(self._planner, lambda: int(self.state.global_step) // self._planner.steps_per_epoch)
        return DataLoader(batches, batch_sampler=order, collate_fn=lambda batch: batch, generator=torch.Generator())

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
        """Return the batches of one round of the loop; on a GPU, start to make the next ones."""
        if self._setup.prefetches:
            if self._prefetched is None or self._prefetched.steps is not epoch_iterator:
                self._stop_prefetching()
                self._prefetched = PrefetchedSteps(epoch_iterator, pins=self.args.device.type == "cuda")
            epoch_iterator = self._prefetched
        return super().get_batch_samples(epoch_iterator, num_batches, device)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train; drop batches of steps that do not come."""
        try:
            result = super().train(*args, **kwargs)
        finally:
            self._stop_prefetching()
        self._count_progress()
        return result

    def stop_voted(self) -> bool:
        """Whether this process wants the run to stop; of several, whether one did before the last step."""
        wants = self.hooks.stop_wanted
        if self.accelerator.num_processes == 1:
            return wants()
        if not self._counts.has_begun:
            return self._group.any(wants())
        voted = self._counts.voted()
        return voted is not None and voted.stops > 0

    def log_voted(self) -> int | None:
        """What the first of several processes has said about logging, before the last step; None before it has."""
        voted = self._counts.voted()
        return None if voted is None else voted.logs

    def _count_progress(self) -> None:
        trained, tokens = self._counts.take()
        self.progress.trained_tokens += trained
        self.progress.tokens += tokens
        self._interval.tokens += tokens

    def _stop_prefetching(self) -> None:
        if self._prefetched is not None:
            self._prefetched.close()
        self._prefetched = None

    def floating_point_ops(self, inputs: Any) -> int:  # noqa: ARG002
        """Not counted: nothing here asks for it."""
        return 0

    def training_step(self, model: Any, inputs: StepBatch, num_items_in_batch: Any = None) -> torch.Tensor:  # noqa: ARG002
        """All passes of one optimizer step, forward and backward; returns the mean loss over its terms.

        Where merged passes run out of memory, the step is repeated, and the run continues, with passes as they were set.
        """
        if self._passes_apart:
            inputs = self._batches.apart(inputs)
        measured = self._interval.measured
        try:
            return self._train_step(model, inputs)
        except RuntimeError as error:
            may_divide = self._setup.settings.merged > 1 and not self._passes_apart
            if not may_divide or self.accelerator.num_processes > 1 or not is_out_of_memory(error):
                raise
        # Only here: the error held everything that the step had allocated.
        print("Memory ran out with merged passes; the run continues with passes as they were set.", flush=True)
        self._passes_apart, self._interval.measured = True, measured
        model.zero_grad(set_to_none=True)
        if self.args.device.type == "cuda":
            torch.cuda.empty_cache()
        return self._train_step(model, self._batches.apart(inputs))

    def _train_step(self, model: Any, inputs: StepBatch) -> torch.Tensor:
        model.train()
        terms = self._passes.terms(inputs.passes)
        votes = Votes(int(self.hooks.stop_wanted()), self.hooks.log_vote())
        scales = self._counts.begin(terms, inputs.trained_tokens, inputs.tokens, votes)
        loss = torch.zeros((), dtype=torch.float32, device=self.args.device)
        spare = min(inputs.passes, key=lambda one: one.tokens).untrained
        passes = self._passes.with_company(inputs.passes, spare, inputs.planned.most_passes)
        estimate = self._passes.estimate(model, passes)
        with self._setup.method.step(self.model):
            for number, cpu_pass in enumerate(passes):
                self.hooks.between_passes()
                faults.reached("training:pass")
                one = cpu_pass.to(self.args.device)
                is_last = number == len(passes) - 1
                # Sharded gradients are divided after each pass: whole ones of all layers would take the memory that is saved.
                with (
                    contextlib.nullcontext() if is_last or self._passes.is_sharded else self.accelerator.no_sync(model)
                ):
                    # Averaged by terms over the whole step, as TRL does; DDP divides by the processes once more.
                    found = self._passes.losses(model, one, estimate)
                    parts = [summed * scale for summed, scale in zip(found.sums, scales, strict=True)]
                    part = sum(parts[1:], start=parts[0])
                    if is_last and (penalty := self._setup.method.penalty(self.model)) is not None:
                        part = part + penalty
                    if faults.is_armed(f"training:loss-{self.state.global_step + 1}"):
                        part = part * float("nan")
                    self.accelerator.backward(part)
                loss += part.detach().to(loss.device)  # the head may be on another one
                self._interval.measured = _added(self._interval.measured, found.measured)
        self._counts.end()
        return loss

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """Note on the device whether the norm is finite: steps that are not logged are checked with the next one that is."""
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if isinstance(norm, torch.Tensor) and self._scaler is None and not self._passes.is_sharded:
            self._interval.poison = _added(self._interval.poison, norm.detach() * 0.0)
        return norm

    @property
    def _scaler(self) -> Any:
        return getattr(self.accelerator, "scaler", None)

    def _loss_scale(self) -> torch.Tensor | None:
        return None if self._scaler is None else self._scaler._get_scale_async()  # get_scale waits for the GPU

    def precompute_reference(self, cache: ReferenceCache) -> None:
        """Give every pair the reference's log-probabilities, from a cache or from one pass over all of them."""
        rows = self._rows
        train, held_out = (self._with_reference(pairs, cache) for pairs in (rows.train, rows.held_out))
        self._rows = replace(rows, train=train, held_out=held_out)

    def _with_reference(self, pairs: Sequence[Any], cache: ReferenceCache) -> Sequence[Any]:
        known = cache.load(pairs) if len(pairs) else torch.zeros(0, 2)
        if not self._group.largest(int(known is None)):
            assert known is not None
            return PairsWithReference(pairs, known)
        objective, batches = self._setup.objective, StepBatches(pairs, self._setup)
        assert isinstance(objective, DirectPreference)
        was_training = self.model.training
        self.model.eval()
        found = torch.zeros(len(pairs), 2, device=self.args.device)
        planned = self._passes.with_company(batches.measured(), batches.shortest)
        for one, tensors in zip(planned, batches.tensors(planned), strict=True):
            self.hooks.between_passes()
            with self._passes.casting():
                if not one.is_trained:
                    objective.pass_through_reference(self.model, tensors.with_any_token().to(self.args.device))
                    continue
                values = objective.reference_log_probabilities(self.model, tensors.to(self.args.device))
            found[list(one.rows)] = values.view(-1, 2).to(found.device)
        self.model.train(was_training)
        if self._passes.is_sharded:
            reshard(self.model)
        if self.accelerator.num_processes > 1:
            found = self.accelerator.reduce(found, reduction="sum")
        found = found.cpu()
        if self._setup.settings.rank == 0:
            cache.save(pairs, found)
        return PairsWithReference(pairs, found)

    # -- measurements -------------------------------------------------------------------------------------------------

    def measure_held_out(self) -> EvalData:
        """Return the mean loss over the terms of the held-out rows: in nats over trained tokens, or over pairs."""
        began = time.perf_counter()
        rows = self._rows.held_out
        was_training = self.model.training
        self.model.eval()
        for module in self.model.modules():
            # Outside training, bitsandbytes rounds the inputs of 8-bit layers as well, which nothing was trained with.
            if type(module).__name__ == "Linear8bitLt" and not hasattr(module, "lora_A"):
                module.train()
        batches = StepBatches(rows, self._setup)
        objective, totals, metrics = self._setup.objective, None, None
        with torch.no_grad():
            planned = self._passes.with_company(batches.measured(), batches.shortest)
            estimate = self._passes.estimate(self.model, batches.tensors(planned))
            for one in batches.tensors(planned):
                self.hooks.between_passes()
                found = self._passes.losses(self.model, one.to(self.args.device), estimate)
                sums = torch.stack([part.cpu().double() for part in found.sums])  # MPS has no float64
                counted = torch.stack([sums, torch.tensor(objective.terms(one), dtype=torch.float64)])
                totals = _added(totals, counted)
                metrics = _added(metrics, found.measured)
        self.model.train(was_training)
        if self._passes.is_sharded:
            reshard(self.model)
        if totals is None:  # more processes than rows
            totals = torch.zeros(2, len(objective.terms(_NOTHING)), dtype=torch.float64)
        if self.accelerator.num_processes > 1:
            totals = self.accelerator.reduce(totals.to(self.args.device), reduction="sum").cpu()
        seconds = time.perf_counter() - began
        self._interval.paused_seconds += seconds
        return EvalData(
            step=int(self.state.global_step),
            eval_loss=float((totals[0] / totals[1].clamp_min(1)).sum()),
            eval_tokens=int(totals[1, 0]),
            rows=len(rows),
            seconds=seconds,
            metrics=self._passes.means(metrics),
        )

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Measure the held-out loss at this step, and remember whether it is the best so far.

        Raises:
            DivergedError: If it is NaN or infinite.
        """
        measured = self.measure_held_out()
        if faults.is_armed(f"held_out:step-{measured.step}"):
            measured = measured.model_copy(update={"eval_loss": math.nan})
        check_held_out(measured.step, measured.eval_loss)
        self.progress.count(measured)
        self.hooks.measured(measured)
        metrics = {"eval_loss": measured.eval_loss}
        self.control: Any = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:  # noqa: ARG002
        """Pass on one logged step; what the loop logs besides steps is not used."""
        if "loss" not in logs:
            return
        now = time.perf_counter()
        seconds = now - self._interval.began - self._interval.paused_seconds
        norm = logs.get("grad_norm")
        if norm is not None and self._interval.poison is not None:
            norm += float(self._interval.poison)
        self._count_progress()
        step = StepData(
            step=int(self.state.global_step),
            epoch=round(float(self.state.epoch or 0.0), 6),
            loss=logs["loss"],
            learning_rate=logs["learning_rate"],
            grad_norm=None if norm is None or self._skipped.in_a_row else float(norm),
            tokens=self.progress.tokens,
            trained_tokens=self.progress.trained_tokens,
            tokens_per_second=self._interval.tokens / max(seconds, 1e-9),
            metrics=self._passes.means(self._interval.measured),
        )
        self._interval = LoggedInterval(now)
        self.hooks.logged(step)
        self.control = self.callback_handler.on_log(self.args, self.state, self.control, logs)

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def _save_checkpoint(self, model: Any, trial: Any) -> None:  # noqa: ARG002
        began = time.perf_counter()
        self.hooks.save()
        self._interval.paused_seconds += time.perf_counter() - began

    def gather_state(self) -> GatheredState:
        """Return what `write_state` cannot get in the first process alone; all processes must ask."""
        self._count_progress()
        return GatheredState(
            random=self._group.gather(state_files.random_state()),
            weights=trained_weights(self.model) if self._passes.is_sharded else None,
            optimizer=whole(self.optimizer.state_dict()) if self._passes.is_sharded else None,
        )

    def write_state(self, folder: Path, gathered: GatheredState) -> None:
        """Write everything that the next step depends on into a folder, in the first process."""
        state_files.save_trained(self.model, self.processing_class, folder, gathered.weights)
        optimizer = self.optimizer.state_dict() if gathered.optimizer is None else gathered.optimizer
        state_files.save_nested(optimizer, folder / state_files.OPTIMIZER_FILE)
        state_files.save_plain(self.lr_scheduler.state_dict(), folder / state_files.SCHEDULER_FILE)
        for rank, state in enumerate(gathered.random):
            (folder / state_files.RANDOM_FILE.format(rank=rank)).write_bytes(state)
        if self._scaler is not None:
            state_files.save_plain(self._scaler.state_dict(), folder / state_files.SCALER_FILE)
        state_files.save_plain(vars(self.progress), folder / state_files.PROGRESS_FILE)
        self.state.save_to_json(str(folder / "trainer_state.json"))

    def restore_progress(self, folder: Path) -> None:
        """Restore the progress of a checkpoint; `train` does so with all the rest."""
        self.progress = Progress(**state_files.load_plain(folder / state_files.PROGRESS_FILE))

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


def _added(total: torch.Tensor | None, more: torch.Tensor | None) -> torch.Tensor | None:
    return more if total is None else total if more is None else total + more.to(total.device)
