"""Other ways to use one model, side by side: changed settings, all methods, several devices, and no training at all."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace

from pydantic import BaseModel

from loratory.engine.config.constraints import DISTRIBUTIONS, DistributionName, constraint_problems, sharding_problem
from loratory.engine.config.methods.registry import METHODS
from loratory.engine.config.run import AdapterConfig, RunConfig, by_section
from loratory.engine.data.contract import RowLengths
from loratory.engine.errors import EngineError, Problem
from loratory.engine.hardware.device import Device
from loratory.engine.hardware.devices import device_problems
from loratory.engine.memory.autograd.tape import Tape
from loratory.engine.memory.device_need import DeviceNeed, TensorsAtPeak, need_on_device
from loratory.engine.memory.estimate import Estimator, Verdict, judge
from loratory.engine.memory.layers.decoder import decoder_layer, embed, residual_width
from loratory.engine.memory.layers.step_context import StepContext
from loratory.engine.memory.peak import workspace_bytes
from loratory.engine.memory.persistent import weight_bytes
from loratory.engine.memory.structure import AdapterTargets, LayerStructure, ModelStructure
from loratory.engine.memory.workload import StepPrecision, Workload
from loratory.engine.models.shape import ModelShape
from loratory.engine.quantities import GIB

PIECE_TOKENS = 512  # engine/generation/worker/batch.py
_MOST_ESTIMATES = 12
_CLOSE_ENOUGH = 128  # a limit is found when it is known to one part in so many

Changes = Mapping[str, str | int | float | bool]  # new values, each within the bounds of its field, by section.field

# What goes with a method where the draft has what it cannot be combined with, by the setting that would be refused.
_REPAIRS: Changes = {"adapter.bias": "none", "training.packing": False}


def with_changes(config: RunConfig, changes: Changes) -> RunConfig:
    """Copy a configuration with some settings changed.

    Whether the new values suit the other settings is not checked: see `new_problems`.
    """
    sections = by_section(changes).items()
    return config.model_copy(
        update={name: getattr(config, name).model_copy(update=fields) for name, fields in sections}
    )


def as_overrides(changes: Changes) -> tuple[str, ...]:
    """Return changes as a form and the command line take them: `section.field=value`."""
    lower = {name: str(value).lower() if isinstance(value, bool) else value for name, value in changes.items()}
    return tuple(f"{name}={value}" for name, value in lower.items())


def new_problems(config: RunConfig, changed_config: RunConfig, device: Device) -> list[Problem]:
    """Return why `changed_config` would be refused on this device, beyond what `config` is refused for already."""
    before = {problem.field for problem in _problems(config, device)}
    return [problem for problem in _problems(changed_config, device) if problem.field not in before]


def _problems(config: RunConfig, device: Device) -> list[Problem]:
    return [*constraint_problems(config), *device_problems(config, device)]


def largest_that_fits(need: Callable[[int], int], free_bytes: int, start: int, upper: int) -> int | None:
    """Search by interpolation; what is returned does fit, and one part in 128 more would not.

    Need grows steadily and the faster the larger the value, so the chord between a value that fits and one that does
    not lies above it: where the chord meets what is free, the value still fits.

    Args:
        start: Tried first: the value of the draft.
        upper: Nothing above it is tried.

    Returns:
        The value; None where not even 1 fits.
    """
    fits, fits_bytes = 0, 0
    beyond, beyond_bytes = upper + 1, 0
    value = max(1, min(start, upper))
    for _ in range(_MOST_ESTIMATES):
        here = need(value)
        if here <= free_bytes:
            last, last_bytes = fits, fits_bytes
            fits, fits_bytes = value, here
        else:
            beyond, beyond_bytes = value, here
        if beyond - fits <= 1 + fits // _CLOSE_ENOUGH:
            break
        if beyond_bytes and fits:
            guess = fits + round((free_bytes - fits_bytes) / (beyond_bytes - fits_bytes) * (beyond - fits))
            # A little further, so the next value is on the other side and closes the gap.
            guess += max(1, guess // (2 * _CLOSE_ENOUGH)) if here <= free_bytes else 0
        elif beyond_bytes:
            guess = 1 if value <= 8 else value // 4
        elif last:
            slope = (fits_bytes - last_bytes) / (fits - last)
            guess = fits + int((free_bytes - fits_bytes) / slope) + 1 if slope > 0 else upper
        else:
            guess = min(2 * value, upper)
        value = max(fits + 1, min(guess, beyond - 1))
    return fits or None


class MethodNeed(BaseModel, frozen=True):
    """One row of the method table."""

    method: str  # as people call it
    needed_bytes: int | None = None  # None where it cannot be used with this model or these settings
    expected_bytes: int | None = None
    verdict: Verdict | None = None
    trainable: int | None = None
    why_not: str = ""
    overrides: tuple[str, ...] = ()  # section.field=value: what choosing this row changes; none where it trains nothing
    is_current: bool = False

    def verdict_on(self, device: Device) -> Verdict | None:
        """Return the verdict for what is free on the device now."""
        if self.needed_bytes is None or self.expected_bytes is None:
            return None
        return judge(self.needed_bytes, self.expected_bytes, device)


class DeviceShare(BaseModel, frozen=True):
    """One way of training on several devices, and what each of them needs for it."""

    sharing: DistributionName
    label: str  # on the page
    meaning: str  # one sentence
    why_not: str = ""  # the draft cannot be trained so
    devices: int
    expected_bytes: int  # on each device, or on the fullest where they differ
    needed_bytes: int  # the same; nine runs in ten stay below
    each_needed_bytes: tuple[int, ...] = ()  # where the devices differ, of each in order
    verdict: Verdict


def compare_methods(
    shape: ModelShape, config: RunConfig, device: Device, lengths: RowLengths | None = None
) -> tuple[MethodNeed, ...]:
    """Estimate every method with the other settings of `config`, and what using the model alone would need.

    Other settings stay as they are, except where they cannot be combined with the method.
    """
    estimator = Estimator(shape, device, lengths)
    rows = _comparison_rows(config.adapter).items()
    return (*(_training(estimator, config, name, changes) for name, changes in rows), _inference(estimator, config))


def compare_rows(
    shape: ModelShape, config: RunConfig, device: Device, names: Collection[str], lengths: RowLengths | None = None
) -> tuple[MethodNeed, ...]:
    """Estimate some rows of the table of methods, in its order."""
    estimator, rows = Estimator(shape, device, lengths), _comparison_rows(config.adapter)
    return tuple(_training(estimator, config, name, changes) for name, changes in rows.items() if name in names)


def _comparison_rows(adapter: AdapterConfig) -> dict[str, Changes]:
    """Return what choosing each row changes: full fine-tuning first, then the methods in their order."""
    rows: dict[str, Changes] = {}
    for method in sorted(METHODS.values(), key=lambda method: not method.trains_all):
        method_changes = {f"adapter.{name}": value for name, value in adapter.changes_for(method.name).items()}
        for row in method.comparison_rows:
            checkpointing = row.gradient_checkpointing
            own = {} if checkpointing is None else {"training.gradient_checkpointing": checkpointing}
            rows[row.name] = {**method_changes, "model.quantization": row.quantization, **own}
    return rows


def _training(estimator: Estimator, config: RunConfig, name: str, changes: Changes) -> MethodNeed:
    refusals = new_problems(config, with_changes(config, changes), estimator.device)
    repairs = {problem.field: _REPAIRS[problem.field] for problem in refusals if problem.field in _REPAIRS}
    if repairs:
        changes = {**changes, **repairs}
        refusals = new_problems(config, with_changes(config, changes), estimator.device)
    if refusals:
        return MethodNeed(method=name, why_not=refusals[0].message)
    overrides, other = as_overrides(changes), with_changes(config, changes)
    try:
        estimate = estimator.estimate(other)
    except EngineError as error:
        return MethodNeed(method=name, why_not=error.what, overrides=overrides)
    return MethodNeed(
        method=name,
        needed_bytes=estimate.needed_bytes,
        expected_bytes=estimate.expected_bytes,
        verdict=estimate.verdict,
        trainable=estimate.parameters.trainable,
        overrides=overrides,
        is_current=other == config,
    )


def share_among(estimator: Estimator, config: RunConfig, devices: int) -> tuple[DeviceShare, ...]:
    """Figures for several devices like the estimator's; each gets a whole batch of `config`.

    Raises:
        ConfigError: If the adapter matches no module of the model, or a setting is absurd.
        ModelError: If the model's shape lacks what a decoder needs.
    """
    alone = replace(estimator.workload(config), data_parallel=1, sharded=1)
    needs: dict[DistributionName, tuple[DeviceNeed, ...]] = {
        "DDP": (estimator.need_of_step(replace(alone, data_parallel=devices)),),
        "FSDP": (estimator.need_of_step(replace(alone, sharded=devices)),),
    }
    if devices <= estimator.structure.num_layers:
        needs["device_map"] = tuple(step.need for step in estimator.split_layers(alone, devices))
    shares = []
    for sharing, each in needs.items():
        fullest = max(each, key=lambda need: need.needed_bytes)
        shares.append(
            DeviceShare(
                sharing=sharing,
                label=DISTRIBUTIONS[sharing].label,
                why_not=(sharding_problem(config) or "") if sharing == "FSDP" else "",
                meaning=DISTRIBUTIONS[sharing].meaning,
                devices=devices,
                expected_bytes=fullest.expected_bytes,
                needed_bytes=fullest.needed_bytes,
                each_needed_bytes=tuple(need.needed_bytes for need in each) if sharing == "device_map" else (),
                verdict=judge(fullest.needed_bytes, fullest.expected_bytes, estimator.device),
            )
        )
    return tuple(shares)


def recommend(shares: Sequence[DeviceShare], free_bytes: int) -> str:
    """Return which way suits a run on several equal devices, in words: by the memory estimate, and by who waits for whom.

    The only statement on speed is its bound: split layers compute one after the other.

    Args:
        shares: From `share_among`.
        free_bytes: Of each device.
    """
    possible = [share for share in shares if not share.why_not]
    fitting = {share.sharing: share for share in possible if share.verdict == "fits"}
    count, room = shares[0].devices, f"{free_bytes / GIB:.1f} GiB free"
    if "DDP" in fitting:
        return f"One copy per GPU fits ({room} on each), and the GPUs only exchange gradients: choose it."
    if "FSDP" in fitting:
        if "device_map" not in fitting:
            return f"It fits on {count} GPUs with {room} each only sharded."
        return (
            f"It fits on {count} GPUs with {room} each sharded or with layers split. Sharded, all work at once: up to {count} "
            "times faster than split, less the time that gathering layers takes, which depends on the link between the GPUs."
        )
    if "device_map" in fitting:
        return f"It fits on {count} GPUs with {room} each only with its layers split; they work in turn."
    least = min(possible, key=lambda share: share.needed_bytes)
    return (
        f"It does not fit on {count} GPUs with {room} each: {least.label.lower()} needs least, "
        f"{least.needed_bytes / GIB:.1f} GiB on each."
    )


def _inference(estimator: Estimator, config: RunConfig) -> MethodNeed:
    """Answering with the weights in the precision of the draft, in a conversation as long as a row."""
    name, device = "Inference only", estimator.device
    try:
        workload = inference_workload(estimator.workload(config))
        tensors = _inference_bytes(estimator.structure, workload, device)
    except EngineError as error:
        return MethodNeed(method=name, why_not=error.what)
    need = need_on_device(TensorsAtPeak(tensors), workload, device)
    return MethodNeed(method=name, needed_bytes=need.needed_bytes, expected_bytes=need.expected_bytes,
        verdict=judge(need.needed_bytes, need.expected_bytes, device), trainable=0,
    )  # fmt: skip


def inference_workload(workload: Workload) -> Workload:
    """One conversation as long as a row, on frozen weights in the precision that products are computed in."""
    width = workload.precision.compute
    return replace(
        workload,
        adapter=AdapterConfig(),
        batch_size=1,
        joined=False,
        joined_lengths=(),
        masked=False,
        fills_up_to=1,
        checkpointing=False,
        accumulates=False,
        precision=StepPrecision(width, width, width, width, width, adapter=width),
    )


def _inference_bytes(structure: ModelStructure, workload: Workload, device: Device) -> int:
    """Return the bytes of tensors at the peak of answering a prompt that fills the context.

    Source: `Answer`, engine/chat/answer.py, which reads the prompt in pieces and asks for the logits of its last position;
    `AdaptedBase.forward`, which casts them to 32 bits.
    """
    shape = structure.shape
    passage = max(_passage_bytes(structure, workload, layer) for layer in structure.layers)
    logits = shape.vocab_size * (workload.precision.head + 4)
    weights = sum(weight_bytes(shape.modules, workload))
    return weights + cache_bytes(shape, workload) + max(passage, logits) + workspace_bytes(workload, device)


def cache_bytes(shape: ModelShape, workload: Workload) -> int:
    """Return the bytes of what the layers remember of a conversation, at most.

    A layer that sees all tokens keeps the keys and values of all. One with a window keeps what its window lacks of the last
    piece, in the tensor that has both. The largest of these is there twice, while new ones are put behind it. States of
    constant size are held at 32 bits.

    Source: `DynamicLayer`, `DynamicSlidingWindowLayer` and `LinearAttentionLayer`, transformers/cache_utils.py.
    """
    tokens = workload.tokens
    limits = (None,) * shape.num_hidden_layers if shape.kept_tokens is None else shape.kept_tokens
    positions = [tokens if window is None else min(tokens, window - 1 + PIECE_TOKENS) for window in limits]
    a_token = 2 * shape.num_key_value_heads * shape.head_dim * workload.precision.compute
    return a_token * (sum(positions) + max(positions, default=0)) + 4 * shape.state_elements


def _passage_bytes(structure: ModelStructure, workload: Workload, layer: LayerStructure) -> int:
    """Return the bytes that pass through one layer, with the arguments of all layers."""

    def stage() -> StepContext:
        tape = Tape()
        tape.records_gradients = False
        return StepContext(tape, workload, structure, AdapterTargets(modules=()))

    width = residual_width(stage())
    r = stage()
    _, passing = embed(r)
    x = r.tape.value(r.tokens * structure.shape.hidden_size, width)
    decoder_layer(r, x, layer)
    return r.tape.peak + passing.arguments
