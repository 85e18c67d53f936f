"""Whether a folder holds a model that can be trained safely: looked at by names and headers, nothing of it executed."""

import contextlib
import hashlib
import json
import re
import stat
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from loratory.engine.errors import ModelError, ModelLimitError, explain_os_errors, shorten
from loratory.engine.models.catalog import is_known_model_type
from loratory.engine.models.families.base import ImageFamily
from loratory.engine.models.families.registry import family_of

MAX_CONFIG_BYTES = 5_000_000
MAX_TEMPLATE_BYTES = 1_000_000  # the longest in use have some 30 kB
MAX_TEMPLATES = 64
_MAX_CARD_BYTES = 1_000_000
MAX_TOKENIZER_BYTES = 100_000_000  # the largest vocabularies in use have some 35 MB
MAX_TOKENIZER_SETTINGS_BYTES = 10_000_000
SINGLE_WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
ADAPTER_CONFIG = "adapter_config.json"
TOKENIZER_FILES = tuple(  # any one of these names a tokenizer that transformers can build
    "tokenizer.json tokenizer.model vocab.json vocab.txt spiece.model tekken.json tiktoken.model".split()
)
ADDITIONAL_TEMPLATES = "additional_chat_templates"
# Settings of a tokenizer that transformers sets itself; old releases saved the path of their cache in them.
_OVERRIDDEN_FILES = frozenset({"tokenizer_file", "special_tokens_map_file"})
_TOKENIZER_SUFFIXES = (".json", ".jinja", ".txt", ".model", ".tiktoken")
_TOKENIZER_SETTINGS = frozenset(
    "config.json tokenizer_config.json special_tokens_map.json added_tokens.json generation_config.json".split()
)
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
# Of a pickle itself, and of the zip of pickles that `torch.save` writes.
_PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
_READ_FIX = "Check the permissions of the folder and its files."
_CONVERT = "Choose a copy with safetensors, or convert it on a machine where you trust it (save_pretrained writes safetensors)."


# Those of transformers itself; any other name is a repository whose compiled code it would fetch and run.
_ATTENTION_KERNELS = (
    "eager", "sdpa", "flex_attention", "flash_attention_2", "flash_attention_3", "flash_attention_4",
)  # fmt: skip

# Chat templates with names of their own, for tools for instance; transformers reads them next to chat_template.jinja.
_NAMED_TEMPLATE = re.compile(r"additional_chat_templates/[\w.-]+\.jinja")


class ModelPart(Enum):
    """How much of a model is needed; each includes those before it."""

    CONFIG = 1  # sizes and architecture: the memory estimate
    TOKENIZER = 2  # text into tokens: previews and checks
    WEIGHTS = 3  # everything: training, chat, export


class TensorRecord(NamedTuple):
    """One tensor as a safetensors header lists it."""

    name: str
    dtype: str
    shape: tuple[int, ...]


def check_model_folder(folder: Path, name: str, part: ModelPart = ModelPart.WEIGHTS) -> None:
    """Make sure that `folder` holds what is needed of a model, and that loading it runs no code of its own.

    Raises:
        ModelError: If it is an adapter, has pickled weights only, needs its own Python code, lacks a shard or a
            tokenizer, or holds a damaged file.
    """
    with explain_os_errors(f"{name} cannot be read", _READ_FIX, ModelError):
        if not folder.is_dir():
            fix = "Check the path, or choose a model from the catalogue."
            raise ModelError(f"The folder {name} does not exist.", fix)
        if not _is_file(folder / "config.json"):
            raise _no_config_error(folder, name)
        refuse_own_code(read_config(folder / "config.json", name), name)
        if part.value >= ModelPart.TOKENIZER.value and not any(_is_file(folder / file) for file in TOKENIZER_FILES):
            fix = "Copy the tokenizer files of the original model into the folder."
            raise ModelError(f"{name} has no tokenizer (none of {', '.join(TOKENIZER_FILES[:3])} …).", fix)
        if part is ModelPart.WEIGHTS:
            _check_weights(folder, name)


def is_named_template(name: str) -> bool:
    """Return whether a file's path below a model's folder is that of a chat template with a name of its own."""
    return _NAMED_TEMPLATE.fullmatch(name) is not None


def named_templates(folder: Path) -> list[str]:
    """Return the paths, below a model's folder, of its chat templates with names of their own."""
    paths = (path.relative_to(folder).as_posix() for path in folder.glob("*/*.jinja") if path.is_file())
    return sorted(name for name in paths if is_named_template(name))


def read_config(path: Path, name: str) -> dict[str, Any]:
    """Read a JSON object of a model, such as its config.json; transformers interprets it.

    Raises:
        ModelError: If it is too big, or not a JSON object.
    """
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES and path.name != WEIGHTS_INDEX:
            raise ValueError("too big")
        value = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(value, dict):
            raise ValueError("no object")
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not a JSON object of usual size"
        what = f"The {path.name} of {name} cannot be read ({reason})."
        raise ModelError(what, "Download or copy that file again.") from error
    return value


def family_in(folder: Path | None, name: str) -> ImageFamily | None:
    """Return the family of the model in a folder, as `family_of`; None where it has no config.json.

    Raises:
        ModelError: As `read_config`.
    """
    config = folder / "config.json" if folder is not None else None
    return family_of(read_config(config, name)) if config is not None and config.is_file() else None


def tokenizer_files_fingerprint(folder: Path) -> str:
    """Return a hash that changes when a file of a tokenizer does, by sizes and times; nothing is read."""
    parts = []
    with contextlib.suppress(OSError):
        for path in _tokenizer_files(folder):
            with contextlib.suppress(OSError):
                status = path.stat()
                parts.append((path.name, status.st_size, status.st_mtime_ns, status.st_ino))
    return hashlib.sha256(repr((str(folder), sorted(parts))).encode()).hexdigest()


def _tokenizer_files(folder: Path) -> list[Path]:
    return [
        path
        for path in (*folder.iterdir(), *(folder / ADDITIONAL_TEMPLATES).glob("*.jinja"))
        if path.suffix in _TOKENIZER_SUFFIXES and path.name != WEIGHTS_INDEX and path.exists() and not path.is_dir()
    ]


def check_tokenizer_files(folder: Path, name: str) -> None:
    """Make sure that a tokenizer has no file bigger than any in use, and none outside its folder, before one is read.

    Raises:
        ModelError: If it has, or one is not a regular file; names it.
    """
    with explain_os_errors(f"{name} cannot be read", _READ_FIX, ModelError):
        files = _tokenizer_files(folder)
        for path in files:
            _check_size(path, name)
    if (folder / "tokenizer_config.json").is_file():
        _refuse_files_elsewhere(read_config(folder / "tokenizer_config.json", name), name)
    templates = sum(path.suffix == ".jinja" for path in files)
    if templates > MAX_TEMPLATES:
        fix = "Use the original files of the model."
        raise ModelError(f"{name} has {templates:,} chat templates; {MAX_TEMPLATES} are the most.", fix)


def _refuse_files_elsewhere(settings: dict[str, Any], name: str) -> None:
    for key, value in settings.items():
        for file in value if isinstance(value, list) else [value]:
            if (
                key.endswith(("_file", "_files"))
                and key not in _OVERRIDDEN_FILES
                and "/" in str(file).replace("\\", "/")
            ):
                what = f"The tokenizer_config.json of {name} names a file outside its folder ({shorten(key)})."
                raise ModelError(what, "Remove that setting, or use the original files of the model.")


def check_template_length(template: object, name: str) -> None:
    """Require that a chat template, or each of several by name, is not longer than a file may be.

    Raises:
        ModelLimitError: If it is longer than a file may be.
    """
    for text in template.values() if isinstance(template, dict) else [template]:
        if isinstance(text, str) and len(text) > MAX_TEMPLATE_BYTES:
            what = f"The chat template of {name} has {len(text):,} characters; {MAX_TEMPLATE_BYTES:,} are the most."
            raise ModelLimitError(what, "Use the original chat template of the model.")


def _check_size(path: Path, name: str) -> None:
    if not _is_file(path):
        raise ModelError(f"{path.name} of {name} is not a regular file.", "Copy the original file into the folder.")
    largest = MAX_TOKENIZER_BYTES
    if path.suffix == ".jinja" or path.name == "chat_template.json":
        largest = MAX_TEMPLATE_BYTES
    elif path.name in _TOKENIZER_SETTINGS:
        largest = MAX_TOKENIZER_SETTINGS_BYTES
    size_bytes = path.stat().st_size
    if size_bytes > largest:
        what = f"{path.name} of {name} has {size_bytes / 1e6:,.0f} MB; {largest / 1e6:,.0f} MB is the most."
        raise ModelLimitError(what, "Use the original file of the model.")


def refuse_own_code(config: dict[str, Any], name: str) -> None:
    """Refuse a model that would have to bring its own Python code, or have transformers fetch a kernel from the Hub.

    A repository may carry code for older releases of an architecture that transformers knows; that is fine, as the code
    is never used.

    Raises:
        ModelError: If `auto_map` points to code and transformers does not know the architecture by itself, or the
            attention is not one of transformers' own.
    """
    for kernel in _attention_kernels(config):
        if kernel not in _ATTENTION_KERNELS:
            raise ModelError(
                f"The config.json of {name} names the attention kernel {shorten(kernel)!r}, and Loratory never runs code "
                f"that comes with a model; those of transformers are {', '.join(_ATTENTION_KERNELS)}.",
                "Remove attn_implementation from that file, or choose another model.",
            )
    model_type = shorten(str(config.get("model_type")))
    if config.get("auto_map") and not is_known_model_type(model_type):
        raise ModelError(
            f"{name} ({model_type}) brings its own Python code (auto_map), and Loratory never runs code that comes "
            "with a model (trust_remote_code stays off).",
            "Choose a model whose architecture transformers itself knows, or update transformers.",
        )


def _attention_kernels(config: dict[str, Any]) -> Iterator[str]:
    """Yield every attention kernel that a configuration names, at any depth, and what it renames into such a setting."""
    waiting: list[Any] = [config]
    while waiting:
        node = waiting.pop()
        if isinstance(node, list):
            waiting.extend(node)
        for key, value in node.items() if isinstance(node, dict) else ():
            waiting.append(value)
            texts = [text for text in (value.values() if isinstance(value, dict) else [value]) if isinstance(text, str)]
            if "attn_implementation" in key:  # a mapping gives one to each nested configuration
                yield from texts
            elif key == "attribute_map":  # transformers takes the names on its left for those on its right
                yield from (text for text in texts if "attn_implementation" in text)


def read_safetensors_header(path: Path, name: str) -> tuple[TensorRecord, ...]:
    """List the tensors of a safetensors file, and prove that the file is whole; no weight is read.

    Raises:
        ModelError: If the file is a pickle, its header is oversized or damaged, or the file shorter or longer than
            its header claims.
    """
    from safetensors import SafetensorError, safe_open

    with path.open("rb") as file:
        start = file.read(5)
    try:
        with safe_open(path, framework="numpy") as tensors:
            parts = {tensor: tensors.get_slice(tensor) for tensor in tensors.keys()}  # noqa: SIM118 - not a mapping
            return tuple(
                TensorRecord(tensor, str(part.get_dtype()), tuple(part.get_shape())) for tensor, part in parts.items()
            )
    except (SafetensorError, ValueError, MemoryError) as error:
        if start.startswith(_PICKLE_STARTS):
            raise pickled_file_error(name, path.name) from error
        what = f"{path.name} of {name} is damaged or not whole ({shorten(str(error))})."
        raise ModelError(what, "Download or copy that file again.") from error


def shard_names(index: Path, name: str) -> tuple[str, ...]:
    """Return file names of the shards that a weights index lists, each a plain name in the same folder.

    Raises:
        ModelError: If the index is damaged, points out of its folder, or lists pickles.
    """
    weight_map = read_config(index, name).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"{index.name} of {name} lists no weights.", "Download or copy that file again.")
    names = tuple(sorted({str(shard) for shard in weight_map.values()}))
    for shard in names:
        if Path(shard).name != shard or "\\" in shard:
            raise ModelError(f"{index.name} of {name} points out of its folder.", "Choose another copy of this model.")
        if shard.endswith(PICKLE_SUFFIXES):
            raise pickled_file_error(name, shard)
    return names


def pickled_file_error(name: str, file: str) -> ModelError:
    """Return why a pickle among safetensors is refused."""
    what = f"{file} of {name} is a pickle file, which can run code when it is read; Loratory reads safetensors only."
    return ModelError(what, _CONVERT)


def pickled_weights_error(name: str, example: str) -> ModelError:
    """Return why weights in pickle files are refused."""
    what = f"{name} has its weights only as pickle files ({example}), which can run code when they are read."
    return ModelError(what, _CONVERT)


def _no_config_error(folder: Path, name: str) -> ModelError:
    if not _is_file(folder / ADAPTER_CONFIG):
        return ModelError(f"{name} has no config.json.", "Choose a folder as transformers' save_pretrained writes it.")
    try:
        base = read_config(folder / ADAPTER_CONFIG, folder.name).get("base_model_name_or_path")
    except ModelError:
        base = None
    # A base given as a path reveals where files are kept; a Hub id or a name does not.
    is_name = isinstance(base, str) and base and not Path(base).is_absolute() and len(base) < 200
    fix = "Choose its base model here; an adapter can be chatted with and exported, and trained further from a run."
    return ModelError(f"{name} holds an adapter{f' for {base}' if is_name else ''}, not a model.", fix)


def _check_weights(folder: Path, name: str) -> None:
    if not _is_file(folder / WEIGHTS_INDEX) and not _is_file(folder / SINGLE_WEIGHTS):
        pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLE_SUFFIXES)
        if pickles:
            raise pickled_weights_error(name, pickles[0])
        raise ModelError(f"{name} has no weights ({SINGLE_WEIGHTS}).", "Download or copy the weight files.")
    files = weight_files(folder, name)
    missing = [file.name for file in files if not _is_file(file)]
    if missing:
        fix = "Download or copy the missing files."
        raise ModelError(f"{name} lacks {len(missing)} of its {len(files)} weight files, first {missing[0]}.", fix)
    for file in files:
        read_safetensors_header(file, name)


def weight_files(folder: Path, name: str) -> list[Path]:
    """Return the files with the weights of a model that has some.

    Raises:
        ModelError: As `shard_names` does.
    """
    index = folder / WEIGHTS_INDEX
    return [folder / file for file in (shard_names(index, name) if _is_file(index) else (SINGLE_WEIGHTS,))]


def license_in(folder: Path) -> str | None:
    """Return the licence in the front matter of a model's card; None where there is none, or no plain word."""
    card = folder / "README.md"
    with contextlib.suppress(OSError, ValueError, yaml.YAMLError):
        if _is_file(card) and card.stat().st_size <= _MAX_CARD_BYTES:
            opening, _, rest = card.read_text(encoding="utf-8").partition("---\n")
            matter = yaml.safe_load(rest.partition("\n---")[0]) if not opening.strip() else None
            name = matter.get("license") if isinstance(matter, dict) else None
            return name if isinstance(name, str) and name.isprintable() and len(name) < 60 else None
    return None


def _is_file(path: Path) -> bool:
    """Return whether this is a regular file or a link to one; reading a FIFO would wait for ever."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except (OSError, ValueError):
        return False
