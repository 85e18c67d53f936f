"""What would make a run fit, or put the room that is left to use; ordered by what it costs the person."""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

from pydantic import BaseModel

from loratory.engine.config.constraints import count_processes
from loratory.engine.config.methods.registry import DEFAULT_METHOD
from loratory.engine.config.run import RunConfig
from loratory.engine.data.contract import RowLengths
from loratory.engine.hardware.device import Device
from loratory.engine.memory.compare import Changes, as_overrides, largest_that_fits, new_problems, with_changes
from loratory.engine.memory.estimate import SLOW_INT8, Estimator, Verdict, judge
from loratory.engine.memory.workload import compute_width_bytes
from loratory.engine.models.families.registry import family_of
from loratory.engine.models.shape import ModelShape

_LARGEST_BATCH = 4096  # the bound of TrainingConfig.per_device_train_batch_size
_MOST_ACCUMULATED = 65_536
_LONGEST = 131_072  # where a model names no limit of its own
_LONGEST_ALLOWED = 1_048_576  # the bound of TrainingConfig.max_length
_SHORTEST = 8  # the bound of TrainingConfig.max_length
_SHORTEST_ADVISED = 128  # tokens; shorter rows teach another task
_WORTH_MENTIONING = 0.02  # of the need; what saves less is noise

_SameResult = Literal["fused_attention", "data_length", "smaller_batch", "checkpointing_on", "sharded"]
_LessExact = Literal["optimizer_8bit", "bfloat16", "double_quant", "int8", "nf4"]
_OtherResult = Literal["without_dora", "whole_images", "fewer_pixels", "lora", "qlora", "shorter_rows"]
_UseOfRoom = Literal["checkpointing_off", "unquantized", "larger_batch"]
_Limit = Literal["largest_batch", "longest_rows"]
AdviceKind = Literal[_SameResult, _LessExact, _OtherResult, _UseOfRoom, _Limit, "combination"]


class AdvisedChange(BaseModel, frozen=True):
    """One change, or several together, and what the run needs afterwards."""

    kind: AdviceKind  # unique within one `Advice`
    change: str  # plain words, for a button
    cost: str  # what it costs the person, or gains where it fits already, in a few words
    needed_bytes: int
    verdict: Verdict
    overrides: tuple[str, ...]  # section.field=value; one click applies them


class Advice(BaseModel, frozen=True):
    """The answer to the next question."""

    # Where the run does not fit: changes that lessen its need, those that cost least first, among them the combination
    # that fits at the least cost. Where it fits: changes that make it faster or more exact and fit as well.
    changes: tuple[AdvisedChange, ...]
    # That fits with everything else as it is, and where the rows are known no more than they need; None where nothing fits.
    longest_max_length: int | None
    largest_batch_size: int | None
    limits: tuple[AdvisedChange, ...] = ()  # these two as changes, where they are not the draft's and none of `changes`


class _Candidate(NamedTuple):
    kind: AdviceKind
    change: str
    cost: str
    changes: Changes
    rows: RowLengths | None = None  # about as they are then, where images change


def advise(shape: ModelShape, config: RunConfig, device: Device, rows: RowLengths | None = None) -> Advice:
    """Find what makes `config` fit on `device`, or what else would fit.

    Without known `rows`, all of them are as long as `max_length` allows.

    Raises:
        ConfigError: If the adapter matches no module of the model.
        ModelError: If the model's shape lacks what a decoder needs.
    """
    return _Adviser(Estimator(shape, device, rows), config).advise()


class _Adviser:
    """One configuration on one device, and the changes that come into question."""

    def __init__(self, estimator: Estimator, config: RunConfig) -> None:
        self._estimator = estimator
        self._config = config
        self._device = estimator.device
        self._now = estimator.need(config)
        self._rows = estimator.rows

    @property
    def _needed_length(self) -> int | None:
        """The `max_length` that the rows need; None where they are not known, or packed into sequences of that length."""
        if self._rows is None or self._config.training.packing:
            return None
        return max(_SHORTEST, min(self._rows.known.needed_max_length, _LONGEST_ALLOWED))

    def advise(self) -> Advice:
        training = self._config.training
        longest_sensible = min(self._estimator.shape.max_position_embeddings or _LONGEST, _LONGEST_ALLOWED)
        most_rows = _LARGEST_BATCH
        if self._rows is not None:
            longest_sensible = min(longest_sensible, self._needed_length or _LONGEST_ALLOWED)
            most_rows = min(most_rows, self._rows.count)
        longest = self._largest("max_length", training.max_length, longest_sensible)
        if longest is not None and (longest < _SHORTEST or self._is_refused({"training.max_length": longest})):
            longest = None
        batch = self._largest("per_device_train_batch_size", training.per_device_train_batch_size, most_rows)
        if judge(self._now.needed_bytes, self._now.expected_bytes, self._device) == "fits":
            verdicts = [self._judge(candidate) for candidate in self._without_new_problems(self._speedups(batch or 1))]
            changes = [change for change in verdicts if change.verdict == "fits"]
        else:
            changes = self._memory_savers(longest, batch)
        change_overrides = {change.overrides for change in changes}
        limits = (self._judge(limit) for limit in self._limits(longest, batch))
        more = tuple(limit for limit in limits if limit.overrides not in change_overrides)
        return Advice(changes=tuple(changes), longest_max_length=longest, largest_batch_size=batch, limits=more)

    def _limits(self, longest: int | None, batch: int | None) -> Iterator[_Candidate]:
        """Yield the largest batch and the longest rows that fit, each with everything else as it is."""
        training = self._config.training
        if batch is not None and batch != training.per_device_train_batch_size:
            more = "more" if batch > training.per_device_train_batch_size else "fewer"
            changes = {"training.per_device_train_batch_size": batch}
            yield _Candidate("largest_batch", f"The largest batch: {batch:,}", f"{more} rows to a step", changes)
        if longest is not None and longest == self._needed_length and longest != training.max_length:
            yield self._length_of_data(longest)
        elif longest is not None and longest != training.max_length:
            cost = "less is cut off" if longest > training.max_length else "longer rows lose their end"
            changes = {"training.max_length": longest}
            yield _Candidate("longest_rows", f"The longest rows: {longest:,} tokens", cost, changes)

    def _length_of_data(self, length: int) -> _Candidate:
        longest = self._rows.known.longest if self._rows is not None else length
        cost = f"nothing is cut: the longest row has {longest:,}"
        return _Candidate("data_length", f"Max length {length:,}", cost, {"training.max_length": length})

    # Where it does not fit

    def _memory_savers(self, longest: int | None, batch: int | None) -> list[AdvisedChange]:
        candidates = (*self._same_result(batch), *self._nearly_the_same_result(), *self._another_result(longest))
        pairs = [(candidate, self._judge(candidate)) for candidate in self._without_new_problems(candidates)]
        worth = (1 - _WORTH_MENTIONING) * self._now.needed_bytes
        helpful = [(candidate, change) for candidate, change in pairs if change.needed_bytes < worth]
        changes = [change for _, change in helpful]
        if changes and changes[0].verdict == "fits":
            return changes
        others = [candidate for candidate, _ in helpful if candidate.kind != "int8"]  # nf4 takes less and is faster
        combination = self._combination(others)
        if len(combination) > 1:
            # After the costliest of its parts: what follows costs more.
            position = 1 + max(position for position, (candidate, _) in enumerate(helpful) if candidate in combination)
            changes.insert(position, self._judge(_merge(combination)))
        return changes

    def _same_result(self, batch: int | None) -> Iterator[_Candidate]:
        """Yield changes that cost time at most."""
        config = self._config
        if config.model.attn_implementation == "eager":
            changes = {"model.attn_implementation": "auto"}
            yield _Candidate("fused_attention", "Use a fused attention kernel", "faster, same result", changes)
        length = self._needed_length
        if length is not None and length < config.training.max_length:
            yield self._length_of_data(length)
        yield from self._smaller_batch(batch or 1)
        if not config.training.gradient_checkpointing and config.adapter.traits.gradient_checkpointing:
            label, cost = "Switch gradient checkpointing on", "about a third slower, same result"
            yield _Candidate("checkpointing_on", label, cost, {"training.gradient_checkpointing": True})
        if count_processes(config) > 1 and config.run.fsdp == "none":
            cost = "layers are gathered from all GPUs at each pass, same result"
            yield _Candidate("sharded", "Shard the model over the GPUs (FSDP2)", cost, {"run.fsdp": "full_shard"})

    def _smaller_batch(self, fitting: int) -> Iterator[_Candidate]:
        """Yield the largest part of the batch that fits, as often as makes up for it."""
        training = self._config.training
        now, accumulated = training.per_device_train_batch_size, training.gradient_accumulation_steps
        parts = [size for size in range(1, now) if now % size == 0 and accumulated * now // size <= _MOST_ACCUMULATED]
        if parts:
            size = max((part for part in parts if part <= fitting), default=parts[0])
            yield _batch_of(size, accumulated * now // size, "smaller_batch", "somewhat slower, same result")

    def _nearly_the_same_result(self) -> Iterator[_Candidate]:
        """Yield changes that cost precision."""
        config, quantization = self._config, self._config.model.quantization
        wide_optimizers = ("adamw_torch", "adamw_torch_fused", "paged_adamw_32bit")
        if self._device.kind == "cuda" and config.training.optim in wide_optimizers:
            label, optim = "Optimizer state in 8 bits", "adamw_8bit"
            if config.run.device_map == "none":  # what is paged belongs to one GPU alone
                label, optim = f"{label}, paged", f"paged_{optim}"
            yield _Candidate("optimizer_8bit", label, "nearly the same result", {"training.optim": optim})
        if config.adapter.traits.trains_all:
            return
        if compute_width_bytes(config, self._device) == 4:
            pace = "slower on this processor" if self._device.kind == "cpu" else "faster"
            changes = {"model.compute_dtype": "bfloat16"}
            yield _Candidate("bfloat16", "Compute in bfloat16", f"{pace}, very slightly less exact", changes)
        if quantization in ("nf4", "fp4") and not config.model.double_quant:
            double = {"model.double_quant": True}
            yield _Candidate("double_quant", "Double quantization", "nearly the same result", double)
        if quantization in ("none", "int8"):
            pace = "faster" if quantization == "int8" else "somewhat slower"
            yield self._quantization("nf4", f"{pace}, a little less exact")
        if quantization == "none":
            yield self._quantization("int8", f"very slightly less exact; {SLOW_INT8}")

    def _quantization(self, kind: Literal["int8", "nf4"], cost: str) -> _Candidate:
        label = f"Hold the frozen weights in {kind}{' (QLoRA)' if kind == 'nf4' else ''}"
        changes = {"model.quantization": kind, **self._biases_left_alone()}
        return _Candidate(kind, label, f"{cost}; biases are not trained" if len(changes) > 1 else cost, changes)

    def _biases_left_alone(self) -> Changes:
        """Return what must change with quantized weights, on which LoRA cannot train biases."""
        adapter, method = self._config.adapter, self._config.adapter.traits
        learns_biases = adapter.bias != "none" and ("bias" in method.fields or method.trains_all)
        return {"adapter.bias": "none"} if learns_biases else {}

    def _another_result(self, longest: int | None) -> Iterator[_Candidate]:
        """Yield changes that alter what is trained."""
        adapter, max_length = self._config.adapter, self._config.training.max_length
        if self._rows is not None:
            max_length = min(max_length, self._needed_length or max_length)
        if "use_dora" in adapter.traits.fields and adapter.use_dora:
            cost = "faster; at low ranks often a little worse"
            yield _Candidate("without_dora", "LoRA without DoRA", cost, {"adapter.use_dora": False})
        yield from self._smaller_images()
        if adapter.traits.trains_all:
            lora = {"adapter.method": DEFAULT_METHOD.name}
            qlora = {**lora, "model.quantization": "nf4", **self._biases_left_alone()}
            yield _Candidate("lora", "Train a LoRA instead of everything", "learns fewer new facts", lora)
            yield _Candidate("qlora", "Train a LoRA on nf4 weights (QLoRA)", "learns fewer new facts", qlora)
        fits = longest is not None and _SHORTEST_ADVISED <= longest < max_length
        length = longest if longest is not None and fits else max_length // 2
        has_images = self._rows is not None and bool(self._rows.pixels)  # which are never cut
        if length >= _SHORTEST_ADVISED and not has_images:
            label, cost = f"Cut rows at {length:,} tokens", "longer rows lose their end"
            yield _Candidate("shorter_rows", label, cost, {"training.max_length": length})

    def _smaller_images(self) -> Iterator[_Candidate]:
        """Yield smaller budgets for images, of those that the family has: a quarter of the pixels, or no tiles."""
        rows, tower = self._rows, self._estimator.structure.tower
        family = family_of({"model_type": self._estimator.shape.model_type})
        if rows is None or tower is None or family is None or not rows.pixels:
            return
        tile, per_token = tower.patches_at_once * tower.patch_pixels, tower.patches_per_token * tower.patch_pixels
        splits = "do_image_splitting" in family.settings
        most = budget = rows.largest_image // 4
        if splits:
            edge = math.isqrt(most // tile)  # in tiles, to which an overview is added
            most, budget = (edge**2 + 1) * tile, edge**2 * tile
        changes: list[tuple[AdviceKind, str, int, Changes]] = []
        if "max_pixels" in family.settings and budget > tile:
            label = f"Reduce images to {budget:,} pixels"
            changes.append(("fewer_pixels", label, most, {"vision.max_pixels": budget}))
        if splits and rows.largest_image > tile:
            changes.append(("whole_images", "Do not split images", tile, {"vision.do_image_splitting": False}))
        for kind, label, pixels, change in changes:
            yield _Candidate(kind, label, "images lose detail", change, rows.with_largest_image(pixels, per_token))

    def _combination(self, candidates: Sequence[_Candidate]) -> list[_Candidate]:
        """Take all changes together, then do without each that is not needed, the costliest first.

        Returns:
            Changes that fit together, none of which costs more than it must; empty where not even all of them fit.
        """
        parts = list(candidates)
        if not self._fits(parts):
            return []
        for candidate in reversed(candidates):
            fewer = [other for other in parts if other is not candidate]
            if self._fits(fewer):
                parts = fewer
        return parts

    def _fits(self, candidates: Sequence[_Candidate]) -> bool:
        joined = _merge(candidates)
        return not self._is_refused(joined.changes) and self._judge(joined).verdict == "fits"

    # Where it fits

    def _speedups(self, batch: int) -> Iterator[_Candidate]:
        """Yield changes that make it faster or more exact."""
        config = self._config
        if config.training.gradient_checkpointing:
            label, off = "Switch gradient checkpointing off", {"training.gradient_checkpointing": False}
            yield _Candidate("checkpointing_off", label, "faster, same result", off)
        if config.model.quantization != "none":
            label = f"Hold the frozen weights in {8 * compute_width_bytes(config, self._device)} bits"
            yield _Candidate("unquantized", label, "faster and more exact", {"model.quantization": "none"})
        if config.model.quantization == "int8":
            yield self._quantization("nf4", f"faster, a little less exact; {SLOW_INT8}")
        yield from self._larger_batch(batch)

    def _larger_batch(self, fitting: int) -> Iterator[_Candidate]:
        """Yield the same rows per optimizer step in fewer passes. Processors gain nothing from it."""
        training = self._config.training
        now, accumulated = training.per_device_train_batch_size, training.gradient_accumulation_steps
        factors = [factor for factor in range(2, accumulated + 1) if accumulated % factor == 0]
        factor = max((factor for factor in factors if now * factor <= fitting), default=1)
        if self._device.kind != "cpu" and factor > 1:
            cost = "faster where rows are short, same result"
            yield _batch_of(now * factor, accumulated // factor, "larger_batch", cost)

    # What it comes to

    def _without_new_problems(self, candidates: Iterable[_Candidate]) -> list[_Candidate]:
        """Return the candidates that a start would not refuse."""
        return [candidate for candidate in candidates if not self._is_refused(candidate.changes)]

    def _is_refused(self, changes: Changes) -> bool:
        return bool(new_problems(self._config, with_changes(self._config, changes), self._device))

    def _judge(self, candidate: _Candidate) -> AdvisedChange:
        estimator = self._estimator
        if candidate.rows is not None:
            estimator = Estimator(estimator.shape, self._device, candidate.rows)
        need = estimator.need(with_changes(self._config, candidate.changes))
        return AdvisedChange(
            kind=candidate.kind,
            change=candidate.change,
            cost=candidate.cost,
            needed_bytes=need.needed_bytes,
            verdict=judge(need.needed_bytes, need.expected_bytes, self._device),
            overrides=as_overrides(candidate.changes),
        )

    def _largest(self, field: str, start: int, upper: int) -> int | None:
        def needed(value: int) -> int:
            if value == start:
                return self._now.needed_bytes
            return self._estimator.need(with_changes(self._config, {f"training.{field}": value})).needed_bytes

        return largest_that_fits(needed, self._device.free_bytes, start, upper)


def _batch_of(size: int, accumulated: int, kind: AdviceKind, cost: str) -> _Candidate:
    changes = {"training.per_device_train_batch_size": size, "training.gradient_accumulation_steps": accumulated}
    return _Candidate(kind, f"Batch of {size}, accumulating {accumulated}", cost, changes)


def _merge(candidates: Sequence[_Candidate]) -> _Candidate:
    labels = [candidate.change for candidate in candidates]
    labels[1:] = [word[:1].lower() + word[1:] for word in labels[1:]]
    costs = list(dict.fromkeys(candidate.cost for candidate in reversed(candidates)))
    changes = {name: value for candidate in candidates for name, value in candidate.changes.items()}
    rows = next((candidate.rows for candidate in candidates if candidate.rows is not None), None)
    return _Candidate("combination", "; ".join(labels), costs[0] if costs else "", changes, rows)
