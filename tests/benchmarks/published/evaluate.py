"""Score the estimate against published measurements: `python -m tests.benchmarks.published FILE... [--json]`.

Allocated is compared with allocated, reserved with reserved, the process with what the driver shows. Where there is no
single figure to hit, the 90% bound is judged by how often it covers the measurement and by how far it lies above. The bound is
derived, not fitted, so it is also judged in each source and environment by itself.
`further_measurements.json` has points of fms-acceleration and of PEFT's comparison on MetaMathQA.
"""

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from loratory.engine.errors import EngineError
from loratory.engine.hardware.device import Device
from loratory.engine.memory.device_need import (
    PROCESS_MARGIN,
    DeviceNeed,
    TensorsAtPeak,
    cuda_context_bytes,
)
from loratory.engine.memory.methods.registry import count_trainable
from loratory.engine.memory.peak import find_peak, require_sizes, workspace_bytes
from loratory.engine.memory.structure import find_targets, read_structure
from tests.benchmarks.published.caching_allocator import reserve_of_step
from tests.benchmarks.published.gpus import is_before_ampere
from tests.benchmarks.published.measurements import (
    MeasuredKind,
    MeasuredPoint,
    observations,
    read_measurements,
)
from tests.benchmarks.published.other_trainers import simulate_plain_step
from tests.benchmarks.published.workloads import device_of_point, shape_of_point, workload_of_point

GIB, MIB = 2**30, 2**20
# A context with all kernels of the libraries, in MiB: 1,687 on an RTX 3090 (pytorch/pytorch#55277), 1,035 with a tensor of 39 on
# a 2080 Ti (pytorch/pytorch#49877).
_FULL_CONTEXT, _FULL_CONTEXT_BEFORE_AMPERE = 1687 * MIB, 996 * MIB


class Comparison(BaseModel):
    """One figure, measured and predicted."""

    model_config = ConfigDict(frozen=True)

    id: str
    source: str
    environment: str
    tier: str
    kind: MeasuredKind
    measured_bytes: int
    predicted_bytes: int
    bound_bytes: int  # 90% bound
    phase: str

    @property
    def error(self) -> float:
        """Relative error, positive where the prediction is too high."""
        return self.predicted_bytes / self.measured_bytes - 1

    @property
    def bound_excess(self) -> float:
        """How far the bound lies above the measurement."""
        return self.bound_bytes / self.measured_bytes - 1


class Refusal(BaseModel):
    """A measurement for which nothing is predicted."""

    model_config = ConfigDict(frozen=True)

    id: str
    tier: str
    reason: str


class Score(BaseModel):
    """How well the figures of one kind are predicted, of one source and tier or of all. Errors relative to the measurement."""

    model_config = ConfigDict(frozen=True)

    source: str
    tier: str
    kind: MeasuredKind
    n: int
    mean_absolute_error: float
    worst_error: float
    coverage: float = Field(serialization_alias="covered")
    above: float  # mean of how far the bound lies above the measurement


class Evaluation(BaseModel):
    """Everything that a file of measurements says about the estimate."""

    model_config = ConfigDict(frozen=True)

    scores: tuple[Score, ...]
    refusals: tuple[Refusal, ...] = Field(serialization_alias="declined")
    comparisons: tuple[Comparison, ...]


def evaluate(points: Iterable[MeasuredPoint]) -> Evaluation:
    """Predict each measurement from its settings, and compare."""
    comparisons: list[Comparison] = []
    refusals: list[Refusal] = []
    for point in points:
        try:
            comparisons.extend(compare(point))
        except EngineError as error:
            refusals.append(Refusal(id=point.id, tier=point.tier, reason=error.what))
    groups: dict[tuple[str, str, MeasuredKind], list[Comparison]] = {}
    for comparison in comparisons:
        groups.setdefault((comparison.source, comparison.tier, comparison.kind), []).append(comparison)
    scores = [_score(source, tier, kind, members) for (source, tier, kind), members in sorted(groups.items())]
    for kind in ("allocated", "reserved", "process"):
        members = [comparison for comparison in comparisons if comparison.kind == kind]
        if members:
            scores.append(_score("all sources", "all", kind, members))
    return Evaluation(scores=tuple(scores), refusals=tuple(refusals), comparisons=tuple(comparisons))


def compare(point: MeasuredPoint) -> list[Comparison]:
    """Predict one measurement.

    Raises:
        EngineError: If its settings are not understood.
    """
    shape = shape_of_point(point)
    workload = workload_of_point(point, shape)
    device = device_of_point(point)
    structure = read_structure(shape)
    targets = find_targets(shape, workload.adapter)
    counts = count_trainable(shape, workload.adapter, targets)
    require_sizes(shape)
    step = simulate_plain_step(structure, workload, targets)
    peak = find_peak(step, structure, workload, device, counts)
    allocator = reserve_of_step(structure, workload, targets, counts, workspace_bytes(workload, device))
    margin = process_margin(point, device)
    need = need_in_fixed_segments(peak.tensors, device, allocator.peak_reserved, allocator.spare_bytes, margin)
    prediction = {
        "allocated": peak.tensors.allocated_bytes,
        "reserved": need.reserved_bytes,
        "process": need.expected_bytes,
    }
    bounds = {
        "allocated": peak.tensors.allocated_bytes,
        "reserved": need.reserved_bound_bytes,
        "process": need.needed_bytes,
    }
    return [
        Comparison(
            id=point.id,
            source=point.source,
            environment=point.environment,
            tier=point.tier,
            kind=observation.kind,
            measured_bytes=observation.bytes,
            predicted_bytes=prediction[observation.kind],
            bound_bytes=bounds[observation.kind],
            phase=peak.phase,
        )
        for observation in observations(point)
    ]


def process_margin(point: MeasuredPoint, gpu: Device) -> int:
    """Return what a process may hold beyond its expected context.

    CUDA loads kernels as they are called by itself since 12.2; before, the environment decides whether all are loaded.

    Source: "Lazy Loading" in NVIDIA's CUDA Programming Guide.
    """
    if point.loads_kernels_when_called:
        return PROCESS_MARGIN
    full = _FULL_CONTEXT_BEFORE_AMPERE if is_before_ampere(gpu.name) else _FULL_CONTEXT
    return full - cuda_context_bytes(gpu)


def need_in_fixed_segments(
    tensors: TensorsAtPeak, device: Device, reserve_bytes: int, spare_bytes: int, margin_bytes: int
) -> DeviceNeed:
    """Add to the tensors what surrounds them where PyTorch's allocator has segments of fixed size.

    Args:
        reserve_bytes: What the allocator held when the step was simulated.
        spare_bytes: What it may hold beyond that, where libraries take and give back in another order.
        margin_bytes: What the process may hold beyond its context.
    """
    context = cuda_context_bytes(device)
    # An allocator that reaches the end of the memory returns unused segments.
    room = max(device.total_bytes, round(tensors.allocated_bytes * 1.02) + context)
    reserved = min(reserve_bytes, room - context)
    bound = min(reserve_bytes + spare_bytes, room - context)
    expected = min(reserved + tensors.paged_bytes + context, room)
    needed = min(bound + tensors.paged_bytes + context + margin_bytes, room)
    return DeviceNeed(tensors.allocated_bytes, reserved, bound, expected, needed)


def _score(source: str, tier: str, kind: MeasuredKind, members: Sequence[Comparison]) -> Score:
    errors = [member.error for member in members]
    coverage, above = _covered_and_mean([member.bound_excess for member in members])
    return Score(
        source=source,
        tier=tier,
        kind=kind,
        n=len(members),
        mean_absolute_error=sum(map(abs, errors)) / len(errors),
        worst_error=max(errors, key=abs),
        coverage=coverage,
        above=above,
    )


def describe(evaluation: Evaluation) -> str:
    """Return the scores as a table, and what was declined."""
    lines = [
        f"{'source':<18}{'tier':>5}  {'kind':<10}{'n':>4}{'mean |error|':>14}{'worst':>9}{'bound covers':>14}{'above':>8}"
    ]
    lines += [
        f"{score.source:<18}{score.tier:>5}  {score.kind:<10}{score.n:>4}{score.mean_absolute_error:>14.2%}{score.worst_error:>+9.1%}"
        f"{score.coverage:>14.0%}{score.above:>+8.1%}"
        for score in evaluation.scores
    ]
    lines.append(f"\n{len(evaluation.refusals)} declined.")
    lines += [f"  {refusal.id}: {refusal.reason}" for refusal in evaluation.refusals]
    return "\n".join(lines)


class Judgement(NamedTuple):
    """How the bound does in one source or environment, from which nothing was learned."""

    origin: str
    n: int
    coverage: float
    above: float  # mean of how far the bound lies above the measurement


def judge_by_origin(comparisons: Iterable[Comparison]) -> list[Judgement]:
    """Judge the bound of reserved memory and of processes in each source, then in each environment."""
    with_bound = [comparison for comparison in comparisons if comparison.kind != "allocated"]
    origins = dict.fromkeys(
        [
            *sorted({comparison.source for comparison in with_bound}),
            *sorted({comparison.environment for comparison in with_bound}),
        ]
    )
    judgements = []
    for origin in origins:
        excess = [
            comparison.bound_excess
            for comparison in with_bound
            if origin in (comparison.source, comparison.environment)
        ]
        judgements.append(Judgement(origin, len(excess), *_covered_and_mean(excess)))
    return judgements


def _covered_and_mean(excess: Sequence[float]) -> tuple[float, float]:
    return sum(value >= 0 for value in excess) / len(excess), sum(excess) / len(excess)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.published", description=__doc__.splitlines()[0])
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="JSON list of measurements")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout, nothing else")
    parser.add_argument("--points", action="store_true", help="every figure, measured and predicted")
    options = parser.parse_args(arguments)
    evaluation = evaluate(point for file in options.files for point in read_measurements(file))
    if options.json:
        print(evaluation.model_dump_json(by_alias=True))
        return 0
    if options.points:
        for comparison in evaluation.comparisons:
            print(
                f"{comparison.error:>+8.2%}  {comparison.kind:<10}{comparison.measured_bytes / GIB:>9.3f} measured"
                f"{comparison.predicted_bytes / GIB:>9.3f} predicted{comparison.bound_bytes / GIB:>9.3f} bound  "
                f"{comparison.phase:<15} {comparison.id}"
            )
    print(describe(evaluation))
    for judgement in judge_by_origin(evaluation.comparisons):
        print(
            f"{judgement.origin:<58}{judgement.n:>4} bounds cover {judgement.coverage:.0%}, {judgement.above:+.1%} above"
        )
    return 0
