"""Merge an adapter into its base's weights, one tensor at a time, which limits memory."""

import itertools
import json
import math
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from peft import PeftConfig
from peft.utils.other import get_pattern_key
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming, apply_renamings
from transformers.modeling_utils import str_to_torch_dtype

from loratory.engine.chat.target import PlannedWeights
from loratory.engine.chat.worker.adapter_patterns import resolve_patterns
from loratory.engine.config.methods.registry import tensor_marks
from loratory.engine.errors import ModelError
from loratory.engine.export.folder import rewrite_json
from loratory.engine.models.families.registry import family_of
from loratory.engine.models.folder import WEIGHTS_INDEX, family_in, read_safetensors_header, weight_files
from loratory.engine.runs.provenance import ADAPTER_WEIGHTS
from loratory.engine.training.image_parts import model_class_of

_DTYPE_NAMES = {dtype: name for name, dtype in str_to_torch_dtype.items()}
FLOATS = frozenset({torch.float64, torch.float32, torch.float16, torch.bfloat16})


class TensorPlan(NamedTuple):
    """A tensor that will be written."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        element_bytes: int = self.dtype.itemsize
        return element_bytes * math.prod(self.shape)


@dataclass(frozen=True)
class BaseFiles:
    """The weight files of a base model, read one tensor at a time."""

    folder: Path
    files: Mapping[str, Path]  # file of each tensor, in the order of the files
    plans: Mapping[str, TensorPlan]

    @classmethod
    def open(cls, folder: Path, name: str) -> "BaseFiles":
        """Read the headers of the files.

        Raises:
            ModelError: If a file is damaged, or has weights that cannot be merged into.
        """
        files: dict[str, Path] = {}
        plans: dict[str, TensorPlan] = {}
        for file in weight_files(folder, name):
            for record in read_safetensors_header(file, name):
                if record.dtype not in str_to_torch_dtype:
                    raise ModelError(
                        f"{name} has {record.dtype} weights, which cannot be merged into.",
                        "Export the adapter, or train on a model in 16 or 32 bits.",
                    )
                files[record.name] = file
                plans[record.name] = TensorPlan(record.name, str_to_torch_dtype[record.dtype], record.shape)
        return cls(folder, files, plans)

    def read(self, name: str) -> torch.Tensor:
        """Read one tensor."""
        with safe_open(self.files[name], framework="pt") as file:
            tensor: torch.Tensor = file.get_tensor(name)
        return tensor

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of most of the weights."""
        sizes: Counter[torch.dtype] = Counter()
        for plan in self.plans.values():
            if plan.dtype in FLOATS:
                sizes[plan.dtype] += plan.size_bytes
        return sizes.most_common(1)[0][0]


def write_shards(
    folder: Path,
    tensors: Sequence[TensorPlan],
    read: Callable[[str], torch.Tensor],
    max_shard_bytes: int,
    on_bytes: Callable[[int], None],
) -> None:
    """Write tensors to one or more files, as `save_pretrained` does, with at most one tensor in memory.

    Args:
        tensors: In the order in which they are cheap to read.
        read: Returns the tensor of a name, in the planned dtype and shape.
        max_shard_bytes: Largest size of a file, unless a single tensor is larger.
        on_bytes: Called with the bytes written since its last call; may raise to stop.

    Raises:
        OSError: If the disk is full or fails.
    """
    plans = {tensor.name: tensor for tensor in tensors}
    split = split_state_dict_into_shards_factory(
        plans,
        get_storage_size=lambda plan: plan.size_bytes,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=max_shard_bytes,
    )
    for file, names in split.filename_to_tensors.items():
        # Wider elements first, so every tensor begins at a multiple of its element's size.
        shard = sorted((plans[name] for name in names), key=lambda plan: -plan.dtype.itemsize)
        _write_file(folder / file, shard, read, on_bytes)
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / WEIGHTS_INDEX).write_text(json.dumps(index, indent=2), encoding="utf-8")


def _write_file(
    path: Path, tensors: Sequence[TensorPlan], read: Callable[[str], torch.Tensor], on_bytes: Callable[[int], None]
) -> None:
    with path.open("wb") as file:
        file.write(_header_bytes(tensors))
        for planned in tensors:
            tensor = read(planned.name).detach().to("cpu").contiguous()
            if tensor.dtype != planned.dtype or tuple(tensor.shape) != planned.shape:
                raise ValueError(f"{planned.name} is {tensor.dtype} {tuple(tensor.shape)}, planned {planned}")
            file.write(memoryview(tensor.reshape(-1).view(torch.uint8).numpy()))
            on_bytes(planned.size_bytes)
        file.flush()
        os.fsync(file.fileno())


def _header_bytes(tensors: Sequence[TensorPlan]) -> bytes:
    """Return the header: its length in eight bytes, then JSON, padded with spaces.

    Source: the safetensors format, https://github.com/huggingface/safetensors#format.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offsets = itertools.accumulate((tensor.size_bytes for tensor in tensors), initial=0)
    for tensor, offset_pair in zip(tensors, itertools.pairwise(offsets), strict=True):
        header[tensor.name] = {"dtype": _DTYPE_NAMES[tensor.dtype], "shape": tensor.shape, "data_offsets": offset_pair}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


_KEY_PREFIX = "base_model.model."
_TIE = "tie_word_embeddings"

Change = Callable[[torch.Tensor], torch.Tensor]  # float32 in, float32 out


class NotByTensorError(Exception):
    """The adapter cannot be merged tensor by tensor, only with the whole model in memory; the message has the reason."""


@dataclass
class Merge:
    """The merged weights of a base and an adapter."""

    base: BaseFiles
    dtype: torch.dtype | None  # of the merged weights; None keeps that of each tensor
    changes: dict[str, Change] = field(default_factory=dict)
    added_tensors: dict[str, torch.Tensor] = field(
        default_factory=dict
    )  # which the base has not, such as an untied head
    # Names in the files by those in the loaded model, where they differ.
    file_names: Mapping[str, str] = field(default_factory=dict)

    def name_in_files(self, name: str) -> str:
        """Return the name in the files of a weight of the loaded model."""
        return self.file_names.get(name, name)

    def plans(self) -> list[TensorPlan]:
        """Return the tensors to write, in the order of the base's files."""
        own = [plan._replace(dtype=self._written_dtype(plan.dtype)) for plan in self.base.plans.values()]
        fallback = self.dtype or self.base.dtype
        return own + [TensorPlan(name, fallback, tuple(tensor.shape)) for name, tensor in self.added_tensors.items()]

    def read(self, name: str) -> torch.Tensor:
        """Return a tensor of the merged model: computed in float32, rounded once."""
        if name in self.added_tensors:
            return self.added_tensors[name].to(self.dtype or self.base.dtype)
        tensor = self.base.read(name)
        written_dtype = self._written_dtype(tensor.dtype)
        change = self.changes.get(name)
        return tensor.to(written_dtype) if change is None else change(tensor.float()).to(written_dtype)

    def _written_dtype(self, dtype: torch.dtype) -> torch.dtype:
        return self.dtype if self.dtype is not None and dtype in FLOATS else dtype


def plan_merge(trained: PlannedWeights, base: BaseFiles, dtype: torch.dtype | None) -> Merge:
    """Plan the change of each tensor of the base.

    Raises:
        NotByTensorError: If the adapter needs the whole model.
    """
    config = PeftConfig.from_pretrained(str(trained.folder))
    merge = Merge(base, dtype, file_names=_file_names(base))
    modules: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in load_file(trained.folder / ADAPTER_WEIGHTS).items():
        path, part = _split_key(key.removeprefix(_KEY_PREFIX))
        if part:
            modules.setdefault(path, {})[part] = tensor.float()
        else:
            _replace(merge, path, tensor)
    resolve_patterns(config, list(modules), trained.name)
    for path, parts in modules.items():
        if merge.name_in_files(f"{path}.weight") not in base.plans:
            raise NotByTensorError(f"the files of the base have no {path}.weight")
        _add_lora(merge, path, parts, config)
    return merge


def _file_names(base: BaseFiles) -> dict[str, str]:
    """Return the names in the files of a vision-language model that transformers renames, by its own names."""
    if family_in(base.folder, base.folder.name) is None:
        return {}
    transforms = get_model_conversion_mapping(_without_weights(base.folder))
    renamings = [transform for transform in transforms if isinstance(transform, WeightRenaming)]
    return {apply_renamings(name, renamings): name for name in base.plans}


def _split_key(key: str) -> tuple[str, str]:
    """Return module and part of an adapter's tensor; the whole name and an empty part for a tensor trained directly."""
    for part in ("lora_A", "lora_B", "lora_magnitude_vector"):
        path, separator, rest = key.partition(f".{part}")
        if separator and rest in ("", ".weight"):
            return path, part
    if any(f".{mark}" in key for mark in (*tensor_marks(), "trainable_tokens")):
        raise NotByTensorError(f"it has {key.rsplit('.', 1)[-1]} tensors")
    return key, ""


def _replace(merge: Merge, name: str, tensor: torch.Tensor) -> None:
    """Replace a tensor of the base by one that was trained directly: a bias, or a saved module."""
    name = merge.name_in_files(name.replace(".base_layer.", ".").replace(".modules_to_save.", "."))
    if name in merge.base.plans:
        if merge.base.plans[name].shape != tuple(tensor.shape):
            raise NotByTensorError(f"{name} has another shape than in the base")
        merge.changes[name] = lambda _: tensor.float()
    else:
        merge.added_tensors[name] = tensor


def _add_lora(merge: Merge, path: str, parts: dict[str, torch.Tensor], config: Any) -> None:
    """Add scaling · B A to W (Hu et al. 2021, section 4.1, arXiv:2106.09685); with DoRA, columns get learned norms."""
    a, b = parts["lora_A"], parts["lora_B"]  # (r, in_features), (out_features, r)
    if a.dim() != 2 or b.dim() != 2:
        raise NotByTensorError(f"{path} is not a linear layer")
    alpha = config.alpha_pattern.get(get_pattern_key(config.alpha_pattern.keys(), path), config.lora_alpha)
    # Rank-stabilized: Kalajdzievski 2023, arXiv:2312.03732.
    scaling = alpha / len(a) ** (0.5 if config.use_rslora else 1)
    name = merge.name_in_files(f"{path}.weight")
    shape = merge.base.plans[name].shape
    transposed = bool(config.fan_in_fan_out)
    expected = (a.shape[1], b.shape[0]) if transposed else (b.shape[0], a.shape[1])
    if shape != expected:
        raise NotByTensorError(f"{name} is {shape} in the base and {expected} in the adapter")
    magnitude = parts.get("lora_magnitude_vector")  # (out_features,)

    def change(weight: torch.Tensor) -> torch.Tensor:
        weight = weight.T if transposed else weight
        merged = weight + scaling * (b @ a)
        if magnitude is not None:  # Liu et al. 2024, equation 5, arXiv:2402.09353
            merged = merged * (magnitude / merged.norm(p=2, dim=1)).view(-1, 1)
        return merged.T if transposed else merged

    merge.changes[name] = change


def tied_weights(folder: Path) -> dict[str, str]:
    """Return the source of each tied weight, by name; no weights are loaded."""
    return dict(getattr(_without_weights(folder), "all_tied_weights_keys", None) or {})


def _without_weights(folder: Path) -> PreTrainedModel:
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    with torch.device("meta"):
        return model_class_of(family_of(config.to_dict())).from_config(config, trust_remote_code=False)


def untie_changed(merge: Merge) -> bool:
    """Untie weights of which the adapter changes one; return whether there were any.

    PEFT trains a copy of the named module, so the other one keeps the base's weight.
    """
    changed_names = merge.changes.keys() | merge.added_tensors.keys()
    tied = (tuple(map(merge.name_in_files, pair)) for pair in tied_weights(merge.base.folder).items())
    untied = [pair for pair in tied if not changed_names.isdisjoint(pair)]
    for pair in untied:
        stored_name = next((name for name in pair if name in merge.base.plans), None)
        for name in pair:
            if stored_name is not None and name not in merge.base.plans and name not in merge.added_tensors:
                merge.added_tensors[name] = merge.base.read(stored_name)
    return bool(untied)


def untie(model: PreTrainedModel) -> None:
    """Untie the output head and the embedding of a model in memory."""
    head = model.get_output_embeddings()
    if head is not None and head.weight is model.get_input_embeddings().weight:
        head.weight = torch.nn.Parameter(head.weight.detach().clone(), requires_grad=False)
        for config in {id(each): each for each in (model.config, model.config.get_text_config(decoder=True))}.values():
            setattr(config, _TIE, False)


def write_untied_config(config_file: Path) -> None:
    """Set in the configuration that head and embedding are not tied."""
    values = json.loads(config_file.read_text(encoding="utf-8"))
    parts = {name: values[name] for name in ("text_config", "language_config") if isinstance(values.get(name), dict)}
    rewrite_json(config_file, **{_TIE: False, **{name: {**part, _TIE: False} for name, part in parts.items()}})
