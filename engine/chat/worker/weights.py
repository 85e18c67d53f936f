"""Load models for chat and evaluation; base and tuned answer from one copy of the weights where possible."""

import gc
import math
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.nn import functional
from transformers import Cache, DynamicCache, PreTrainedModel

from loratory.engine.chat.contract import Branch
from loratory.engine.chat.target import LoadPlan, PlannedWeights
from loratory.engine.chat.worker.adapter import AdaptedBase, Adapter
from loratory.engine.chat.worker.static_cache import LentCache
from loratory.engine.config.run import ModelConfig
from loratory.engine.data.conversation import ImageRef
from loratory.engine.data.render.tokenize import TokenizedRow
from loratory.engine.errors import DeviceError, EngineError, ModelError
from loratory.engine.generation.worker.batch import PIECE_TOKENS
from loratory.engine.hardware.device import Device
from loratory.engine.hardware.devices import list_devices
from loratory.engine.hardware.processor import memory_now
from loratory.engine.models.folder import check_model_folder, family_in, read_safetensors_header, weight_files
from loratory.engine.training.answers import virtual_token_cache
from loratory.engine.training.batching.batches import pad
from loratory.engine.training.failure import is_out_of_memory
from loratory.engine.training.image_parts import model_class_of
from loratory.engine.training.ops.attention import copy_shared_heads
from loratory.engine.training.ops.loss import logit_transform, loss_of_each
from loratory.engine.training.placement import quantization_of, require_usable

if TYPE_CHECKING:
    from loratory.engine.training.batching.images import ImageInputs


def choose_dtype(model: ModelConfig, device: Device) -> torch.dtype:
    """Return the configured dtype; for `auto`, float16 on GPUs without fast bfloat16, else bfloat16.

    Generation is limited by memory bandwidth, and bfloat16 moves half the bytes. A CPU without instructions for it, an AMD
    EPYC with AVX2, took 2.1 ms for a token's product with 8192 × 2048 weights and 4.3 ms in float32, but 100 and 28 ms for 64
    tokens of a prompt.
    """
    if model.compute_dtype != "auto":
        return {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}[model.compute_dtype]
    return torch.bfloat16 if device.kind == "cpu" or device.has_fast_bfloat16 else torch.float16


Announce = Callable[[str], None]


@dataclass(frozen=True)
class ModelSpec:
    """A model's folder and display name, and the device and dtype to load it with."""

    folder: Path
    name: str
    device: Device
    dtype: torch.dtype
    media: Path | None = None  # the folder of the media store, for a model that takes images


@dataclass(frozen=True)
class BranchWeights:
    """The model of one branch, and the adapter that is active when it answers."""

    holder: AdaptedBase
    adapter: Adapter | None = None

    @property
    def virtual_tokens(self) -> int:
        """Positions of the context that the branch takes before the first token."""
        return self.adapter.virtual_tokens if self.adapter is not None else 0

    def answer_cache(self, positions: int) -> Cache | LentCache | None:
        """Return a cache for an answer of so many positions with its prompt; a static one where possible."""
        self.holder.switch_to(self.adapter)
        return self.holder.lend_cache(positions) or self.new_cache()

    def new_cache(self) -> Cache | None:
        """Return an empty cache for one answer, or one with the adapter's virtual tokens.

        None for the few architectures without such a cache, which read everything again for each token.
        """
        self.holder.switch_to(self.adapter)
        if self.adapter is not None and self.adapter.is_prefix:
            with torch.inference_mode():
                return virtual_token_cache(self.adapter.peft)
        has_cache = self.holder.model._supports_default_dynamic_cache()
        return DynamicCache(config=self.holder.model.config.get_text_config(decoder=True)) if has_cache else None

    def token_losses(self, ids: Sequence[int], labels: Sequence[int], images: Sequence[ImageRef] = ()) -> list[float]:
        """Return -log p of each trained token of a sequence, in nats.

        The sequence is read in pieces, so no more than one piece's logits are in memory; with images, in one. `labels` are the tokens that are
        trained, else -100; nothing predicts the first token.
        """
        device = self.holder.model.device
        cache = self.new_cache()
        step = PIECE_TOKENS if cache is not None and not images else len(ids)
        losses: list[float] = []
        for start in range(0, len(ids), step):
            end = min(start + step, len(ids))
            positions = [index for index in range(start, end) if index + 1 < len(ids) and labels[index + 1] >= 0]
            piece = torch.tensor([list(ids[start:end])], device=device)
            # A piece without trained tokens has to be read too; it computes one token's logits.
            indices = torch.tensor([index - start for index in positions] or [0], device=device)
            inputs, _ = self.holder.image_inputs([images], piece)
            logits = self.holder.forward(piece, cache, indices, **inputs)[0]
            if positions:
                targets = torch.tensor([labels[index + 1] for index in positions], device=device)
                losses += functional.cross_entropy(logits.float(), targets, reduction="none").tolist()
        return losses

    def batch_token_losses(self, rows: Sequence[TokenizedRow]) -> list[list[float]]:
        """Return `token_losses` of each row, computed as one batch.

        Rows are padded on the right, so they need no mask. Logits are computed in chunks, of trained tokens only. Not for
        adapters with virtual tokens, nor for int8 layers, which look for outliers over the whole batch.
        """
        self.holder.switch_to(self.adapter)
        model, device = self.holder.model, self.holder.model.device
        batch = pad(rows, 0).to(device)
        ids = batch.inputs["input_ids"]
        inputs, _ = self.holder.image_inputs([row.images for row in rows], ids)
        states = model.base_model(input_ids=ids, use_cache=False, **inputs).last_hidden_state
        trained_states = states.reshape(-1, states.shape[-1])[batch.trained.positions]
        transform = logit_transform(model.config.get_text_config(decoder=True))
        losses = loss_of_each(trained_states, batch.trained.targets, model.get_output_embeddings(), transform)
        return [values.tolist() for values in losses.split(list(batch.sequence_tokens))]

    def logits_at(self, ids: Sequence[int], positions: Sequence[int], images: Sequence[ImageRef] = ()) -> torch.Tensor:
        """Read a whole sequence; return the logits after the tokens at `positions`, (positions, vocabulary)."""
        cache, device = self.new_cache(), self.holder.model.device
        piece, indices = torch.tensor([list(ids)], device=device), torch.tensor(list(positions), device=device)
        inputs, _ = self.holder.image_inputs([images], piece)
        return self.holder.forward(piece, cache, indices, **inputs)[0].float()

    def next_logits(self, ids: torch.Tensor, cache: Cache | LentCache | None, **inputs: torch.Tensor) -> torch.Tensor:
        """Append `ids`, shape (1, tokens), to the cache; return the logits of the next token, (1, vocabulary).

        `inputs` are those of the images in `ids`, and moved positions.
        """
        self.holder.switch_to(self.adapter)
        if isinstance(cache, LentCache):
            return cache.read(ids)
        return self.holder.forward(ids, cache, **inputs)[:, -1].float()


class Weights:
    """A base model and the weights that were trained on it.

    Raises:
        ModelError: If weights cannot be read or do not fit together.
        DeviceError: If memory is too small.
    """

    def __init__(self, plan: LoadPlan, spec: ModelSpec, announce: Announce) -> None:
        self.spec = spec
        self.plan = plan
        self._images: ImageInputs | None = None
        self._base: AdaptedBase | None = None
        self._branches: dict[Branch, BranchWeights] = {}
        self.exchange(plan, announce)

    @property
    def branch_names(self) -> tuple[Branch, ...]:
        """Branches that can answer."""
        return ("base", *self.plan.trained_weights)

    def exchange(self, plan: LoadPlan, announce: Announce) -> None:
        """Replace the adapters by those of another plan; on an error, these weights cannot be used any more.

        Raises:
            ModelError: If the new ones cannot be read or do not fit.
            DeviceError: If memory is too small.
        """
        self._announce = announce
        self._branches = {}
        if self._base is not None:
            self._base.detach_all()
        gc.collect()  # adapters and their layers refer to each other
        branches = {branch: self._load_one(branch, weights) for branch, weights in plan.trained_weights.items()}
        if self._base is not None or not branches:
            branches["base"] = BranchWeights(self._need_base())
        self.plan, self._branches = plan, branches

    def show_images(self, images: "ImageInputs | None") -> None:
        """Set what opens images for all branches; None where the model takes none."""
        self._images = images
        for holder in self.holders():
            holder.images = images

    def branch(self, branch: Branch) -> BranchWeights:
        """Return the weights of a branch.

        A fully trained model needs its base only for comparison, so the base is loaded on first use.

        Raises:
            DeviceError: If the memory is too small for a second model.
        """
        if branch == "base" and branch not in self._branches:
            self._branches[branch] = BranchWeights(self._need_base())
        return self._branches[branch]

    def holders(self) -> Iterator[AdaptedBase]:
        """Yield every model in memory, once."""
        yield from {id(weights.holder): weights.holder for weights in self._branches.values()}.values()

    @property
    def has_virtual_tokens(self) -> bool:
        """Whether a branch has virtual tokens."""
        return any(weights.virtual_tokens for weights in self._branches.values())

    @property
    def size_bytes(self) -> int:
        """Bytes of all weights in memory, adapters included."""
        tensors: dict[int, int] = {
            tensor.data_ptr(): tensor.nbytes
            for holder in self.holders()
            for tensor in (*holder.model.parameters(), *holder.model.buffers())
        }
        prefixes = (adapter.size_bytes for adapter in self._adapters() if adapter.is_prefix)
        return sum(tensors.values()) + sum(prefixes)

    @property
    def adapter_bytes(self) -> int:
        """Bytes of the adapters alone."""
        return sum(adapter.size_bytes for adapter in self._adapters())

    def _adapters(self) -> Iterator[Adapter]:
        return (weights.adapter for weights in self._branches.values() if weights.adapter is not None)

    def _load_one(self, branch: Branch, weights: PlannedWeights) -> BranchWeights:
        if weights.is_whole_model:
            return BranchWeights(self._read(replace(self.spec, folder=weights.folder, name=weights.name)))
        base = self._need_base()
        self._announce(f"Reading the adapter {weights.name}.")
        with memory_errors(self.spec):
            return BranchWeights(base, base.attach(weights, branch))

    def _need_base(self) -> AdaptedBase:
        if self._base is None:
            self._base = self._read(self.spec)
        return self._base

    def _read(self, spec: ModelSpec) -> AdaptedBase:
        self._announce(f"Reading the weights of {spec.name}.")
        return AdaptedBase(load_model(spec, self.plan.model), spec.name, self._images)


def load_model(spec: ModelSpec, config: ModelConfig) -> PreTrainedModel:
    """Load a model's weights onto its device, ready to answer.

    Raises:
        ModelError: If they cannot be read.
        DeviceError: If they are larger than the free memory, or torch cannot use the GPU.
    """
    check_model_folder(spec.folder, spec.name)
    if spec.device.kind == "cuda":
        require_usable([device for device in list_devices() if device.kind == "cuda"], names_gpus=True)
    _require_memory(spec, config)
    arguments: dict[str, object] = {}
    family = family_in(spec.folder, spec.name)
    quantization = quantization_of(config, spec.dtype, family)
    if quantization is not None:  # None would hide the one that the model brings
        arguments["quantization_config"] = quantization
    if config.attn_implementation != "auto":
        arguments["attn_implementation"] = config.attn_implementation
    try:
        with memory_errors(spec):
            model: PreTrainedModel = model_class_of(family).from_pretrained(
                spec.folder,
                dtype=spec.dtype,
                device_map={"": spec.device.torch_name},
                use_safetensors=True,
                use_kernels=False,  # those of the Hub
                trust_remote_code=False,
                local_files_only=True,
                **arguments,
            )
    except EngineError:
        raise
    except Exception as error:  # transformers raises any error of its backends; the log has the traceback
        traceback.print_exc()
        fix = "See chat.log in the server folder; try another precision, or update transformers."
        raise ModelError(f"{spec.name} cannot be loaded ({type(error).__name__}).", fix) from error
    copy_shared_heads(spec.dtype, (0,) if spec.device.kind == "cuda" else ())
    model.eval()
    model.requires_grad_(False)
    return model


def _require_memory(spec: ModelSpec, config: ModelConfig) -> None:
    size = weights_bytes(spec, config) / 1024**3
    free = (torch.cuda.mem_get_info()[0] if spec.device.kind == "cuda" else memory_now().free_bytes) / 1024**3
    if size > free:
        raise DeviceError(
            f"{spec.name} needs {size:.1f} GiB for its weights; {spec.device.name} has {free:.1f} GiB free.",
            "Choose a smaller model." if config.quantization != "none" else "Load it with nf4 quantization.",
        )


def weights_bytes(spec: ModelSpec, config: ModelConfig) -> int:
    """Return the bytes of the loaded weights, from the headers of their files."""
    # 4 bits and the scales of a block of 64; 8 bits and a scale per row.
    quantized_bytes = {"nf4": 0.57, "fp4": 0.57, "int8": 1.01}.get(config.quantization, spec.dtype.itemsize)
    total = 0.0
    for file in weight_files(spec.folder, spec.name):
        for record in read_safetensors_header(file, spec.name):
            # Only matrices inside the layers are quantized, not embeddings and norms.
            is_quantized = len(record.shape) == 2 and "embed" not in record.name and "lm_head" not in record.name
            total += math.prod(record.shape) * (quantized_bytes if is_quantized else spec.dtype.itemsize)
    return int(total)


@contextmanager
def memory_errors(spec: ModelSpec) -> Iterator[None]:
    """Turn out-of-memory errors of any device into a DeviceError."""
    try:
        yield
    except (MemoryError, OSError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        if spec.device.kind == "cuda":
            torch.cuda.empty_cache()
        fix = "Unload it, then load it with nf4 quantization or keep the conversation shorter."
        raise DeviceError(f"The memory of {spec.device.name} ran out with {spec.name}.", fix) from error
