"""Losses, metrics and counts of passes through a model, in one or several processes.

Counts of a step stay on the device until a step is logged, so no step waits for them.
"""

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import torch

from loratory.engine.training.batching.batches import PassTensors
from loratory.engine.training.batching.steps import StepBatches, TrainerSetup
from loratory.engine.training.distribution import is_sharded, reshard
from loratory.engine.training.image_parts import language_model_of
from loratory.engine.training.objectives.base import PassLosses
from loratory.engine.training.objectives.preferences import DirectPreference
from loratory.engine.training.ops.loss import TrainedTokens, causal_lm_of
from loratory.engine.training.placement import ProcessGroup

_Pass = TypeVar("_Pass")
_EMPTY_PASS = PassTensors({}, TrainedTokens(torch.zeros(0), torch.zeros(0)), 0, 0)


def add_tensors(total: torch.Tensor | None, more: torch.Tensor | None) -> torch.Tensor | None:
    """Return the sum of two tensors, each of which may be missing, on the first one's device."""
    return more if total is None else total if more is None else total + more.to(total.device)


class ModelPasses:
    """Computes losses and metrics of passes, in training and in measurements.

    Args:
        accelerator: The trainer's, which sums over all processes.
        device: The device of passes and sums.
    """

    def __init__(self, model: Any, setup: TrainerSetup, accelerator: Any, device: torch.device) -> None:
        self._setup = setup
        self._objective = setup.objective
        self._accelerator = accelerator
        self._device = device
        self._group = ProcessGroup(setup.settings.rank, setup.settings.world_size)
        self.is_sharded = is_sharded(model)

    def pad_pass_count(
        self, passes: Sequence[_Pass], spare: Callable[[], _Pass], most: int | None = None
    ) -> list[_Pass]:
        """Return passes, with dummy ones up to the most passes of any process of a sharded model.

        Each pass gathers every layer from all processes, which wait for each other. `most` is that number where the plan of
        a step has it; otherwise the processes exchange it.
        """
        if not self.is_sharded:
            return list(passes)
        missing = (self._group.largest(len(passes)) if most is None else most) - len(passes)
        return [*passes, *(spare() for _ in range(missing))]

    def terms(self, passes: Sequence[PassTensors]) -> list[int]:
        """Return the number of terms of each part of the loss in these passes."""
        return [sum(part) for part in zip(*(self._objective.terms(batch) for batch in passes), strict=True)]

    def estimate(self, model: Any, passes: Iterable[PassTensors]) -> torch.Tensor | None:
        """Return the objective's estimate over all passes and processes; None if it needs none."""
        objective, device = self._objective, self._device
        if not objective.needs_estimate:
            return None
        total = torch.zeros(2, device=device)
        for batch in passes:
            if batch.kl_batch is not None:
                with self.casting():
                    total += objective.estimate(model, batch.kl_batch.to(device)).to(device)
        return total if self._accelerator.num_processes == 1 else self._accelerator.reduce(total, reduction="sum")

    def losses(self, model: Any, batch: PassTensors, estimate: torch.Tensor | None = None) -> PassLosses:
        """Return the losses of a pass; zeros if it has nothing to train on."""
        objective = self._objective
        if max(terms := objective.terms(batch)) == 0:  # a row whose only trained token is its first
            nothing = torch.zeros((), device=self._device)
            if torch.is_grad_enabled() or self.is_sharded:
                nothing = self._no_gradient(model, batch)
            return PassLosses((nothing, *(torch.zeros_like(nothing) for _ in terms[1:])))
        with self.casting():
            return objective.losses(model, batch, estimate)

    def _no_gradient(self, model: Any, batch: PassTensors) -> torch.Tensor:
        """Return a loss of zero that gives every trained weight a gradient of zero."""
        if self._accelerator.num_processes == 1:
            # A gradient of zero for each, or a step of such rows alone would move one of them alone.
            weights = (p.sum().float().to(self._device) for p in model.parameters() if p.requires_grad)
            return torch.stack(list(weights)).sum() * 0.0
        # Other processes wait for this one's gradients, which only a pass through the model sends.
        batch = batch.with_any_token()
        with self.casting():
            if self.is_sharded:
                self._objective.run_dummy_reference(model, batch)
            return model(**batch.inputs, trained_tokens=batch.trained) * 0.0

    def casting(self) -> Any:
        """Return the context of autocast, if the run uses it."""
        dtype = self._setup.autocast
        return contextlib.nullcontext() if dtype is None else torch.autocast(self._device.type, dtype=dtype)

    @contextlib.contextmanager
    def _evaluating(self, model: Any) -> Iterator[None]:
        """Put a model into evaluation mode within the block."""
        was_training = model.training
        model.eval()
        for module in model.modules():
            # Outside training, bitsandbytes also rounds the inputs of 8-bit layers, which training does not.
            if type(module).__name__ == "Linear8bitLt" and not hasattr(module, "lora_A"):
                module.train()
        yield
        model.train(was_training)
        if self.is_sharded:
            reshard(model)

    @contextlib.contextmanager
    def answering(self, model: Any) -> Iterator[Any]:
        """Yield a model that can generate, with its own attention and without compiled layers, as it was afterwards."""
        language_model, setup = language_model_of(causal_lm_of(model)), self._setup
        attention = language_model.config._attn_implementation
        with contextlib.ExitStack() as stack:
            for context in (torch.no_grad(), self._evaluating(model), self.casting()):
                stack.enter_context(context)
            if setup.settings.training.torch_compile:  # each length would be compiled
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            if attention != setup.attention:
                language_model.set_attn_implementation(setup.attention)
                stack.callback(language_model.set_attn_implementation, attention)
            yield model

    def held_out_losses(
        self, model: Any, rows: Sequence[Any], between_passes: Callable[[], None]
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """Return the sum and the terms of each part of the loss over held-out rows, (2, parts), and the mean metrics."""
        batches, objective = StepBatches(rows, self._setup), self._objective
        totals: torch.Tensor | None = None
        metrics: torch.Tensor | None = None
        with torch.no_grad(), self._evaluating(model):
            passes = self.pad_pass_count(batches.evaluation_passes(), batches.shortest)
            estimate = self.estimate(model, batches.tensors(passes))
            for batch in batches.tensors(passes):
                between_passes()
                losses = self.losses(model, batch.to(self._device), estimate)
                sums = torch.stack([part.cpu().double() for part in losses.sums])  # MPS has no float64
                terms = torch.tensor(objective.terms(batch), dtype=torch.float64)
                totals = add_tensors(totals, torch.stack([sums, terms]))
                metrics = add_tensors(metrics, losses.metrics)
        if totals is None:  # more processes than rows
            totals = torch.zeros(2, len(objective.terms(_EMPTY_PASS)), dtype=torch.float64)
        if self._accelerator.num_processes > 1:
            totals = self._accelerator.reduce(totals.to(self._device), reduction="sum").cpu()
        return totals, self.means(metrics)

    def reference_log_probabilities(
        self, model: Any, pairs: Sequence[Any], between_passes: Callable[[], None]
    ) -> torch.Tensor:
        """Return the reference's log-probabilities of the answers of all pairs, (pairs, 2)."""
        batches, objective = StepBatches(pairs, self._setup), self._objective
        assert isinstance(objective, DirectPreference)
        values = torch.zeros(len(pairs), 2, device=self._device)
        with self._evaluating(model):
            passes = self.pad_pass_count(batches.evaluation_passes(), batches.shortest)
            for plan, tensors in zip(passes, batches.tensors(passes), strict=True):
                between_passes()
                batch = tensors if plan.is_trained else tensors.with_any_token()
                with self.casting():
                    answers = objective.reference_log_probabilities(model, batch.to(self._device))
                if plan.is_trained:
                    values[list(plan.rows)] = answers.view(-1, 2).to(values.device)
        if self._accelerator.num_processes > 1:
            values = self._accelerator.reduce(values, reduction="sum")
        return values.cpu()

    def means(self, metrics: torch.Tensor | None) -> dict[str, float]:
        """Return the objective's mean metrics over all processes, by name, without those that have no values."""
        names = self._objective.traits.metrics
        if not names:
            return {}
        if metrics is None:
            metrics = torch.zeros(len(names), 2, device=self._device)
        if self._accelerator.num_processes > 1:
            metrics = self._accelerator.reduce(metrics, reduction="sum")
        pairs = zip(names, metrics.double().cpu().tolist(), strict=True)
        means = {name: total / count for name, (total, count) in pairs if count}
        if "rewards/margins" not in names and {"rewards/chosen", "rewards/rejected"} <= means.keys():
            means["rewards/margins"] = means["rewards/chosen"] - means["rewards/rejected"]
        return means


class Votes(NamedTuple):
    """Requests of the processes, summed over them."""

    stops: int  # how many want the run to stop
    logs: int  # the first process's vote on logging; `RunCallback.log_vote`


class _PendingVotes(NamedTuple):
    """Votes that are being copied to the CPU."""

    votes: torch.Tensor  # (2,), in CPU memory
    copied_event: Any  # an event of CUDA; None on other devices


class StepCounts:
    """Terms, tokens and requests to stop of each step, over all processes.

    Args:
        accelerator: The trainer's, which sums over all processes.
        device: The device of losses.
    """

    def __init__(self, accelerator: Any, device: torch.device) -> None:
        self._accelerator = accelerator
        self._device = device
        self._step: torch.Tensor | None = None  # trained and all tokens of the step under way
        self._unread: torch.Tensor | None = None
        self._pending: deque[_PendingVotes] = deque(maxlen=2)

    @property
    def has_begun(self) -> bool:
        """Return whether a step of several processes was counted."""
        return bool(self._pending)

    def begin(
        self, terms: Sequence[int], trained_tokens: int, tokens: int, votes: Votes
    ) -> Sequence[float | torch.Tensor]:
        """Start a step with the terms, tokens and votes of this process.

        Returns:
            The factor for the summed loss of each part. It gives the mean over the terms of all processes, whose gradients
            are divided by their number once more.
        """
        if self._accelerator.num_processes == 1:
            self._step = torch.tensor([trained_tokens, tokens])
            return [1 / max(1, count) for count in terms]
        own = torch.tensor([*terms, trained_tokens, tokens, *votes])
        if self._device.type == "cuda":
            own = own.pin_memory()
        sums = self._accelerator.reduce(own.to(self._device, non_blocking=True), reduction="sum")
        self._step = sums[-4:-2]
        self._send(sums[-2:])
        return list((self._accelerator.num_processes / sums[:-4].clamp_min(1).double()).float())

    def end(self) -> None:
        """Add the tokens of the last started step, which is complete."""
        self._unread = add_tensors(self._unread, self._step)

    def take(self) -> tuple[int, int]:
        """Return trained and all tokens of the steps since the last call; waits for the device."""
        trained, tokens = [0, 0] if self._unread is None else self._unread.tolist()
        self._unread = None
        return trained, tokens

    def latest_votes(self) -> Votes | None:
        """Return the votes at the start of the step before the last one; all processes get them after the same step.

        A GPU has summed them by then, while its queue still has most of a step. None before there are any.
        """
        if len(self._pending) < 2:
            return None
        pending = self._pending[0]
        if pending.copied_event is not None:
            pending.copied_event.synchronize()
        return Votes(*(int(count) for count in pending.votes.numpy()))

    def _send(self, votes_on_device: torch.Tensor) -> None:
        on_cuda = self._device.type == "cuda"
        votes = torch.empty(len(votes_on_device), dtype=votes_on_device.dtype, pin_memory=on_cuda)
        votes.copy_(votes_on_device, non_blocking=True)
        copied_event = torch.cuda.Event() if on_cuda else None
        if copied_event is not None:
            copied_event.record()
        self._pending.append(_PendingVotes(votes, copied_event))
