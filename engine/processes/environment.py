"""Which variables a process of ours gets from us: those that it may need, and no secret unless it is for its work."""

import os
import re
from collections.abc import Collection, Mapping
from enum import Enum
from pathlib import Path
from typing import NamedTuple

_PASSED = frozenset(
    {
        # The system, the user and their language.
        *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TERM", "TMPDIR", "TEMP", "TMP"),
        *("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_RUNTIME_DIR", "VIRTUAL_ENV", "CONDA_PREFIX"),
        *("LD_LIBRARY_PATH", "LD_PRELOAD", "DYLD_LIBRARY_PATH", "DYLD_FALLBACK_LIBRARY_PATH"),
        *("SYSTEMROOT", "SYSTEMDRIVE", "WINDIR", "COMSPEC", "PATHEXT", "APPDATA", "LOCALAPPDATA", "USERPROFILE"),
        *("PROGRAMDATA", "PROGRAMFILES", "NUMBER_OF_PROCESSORS", "PROCESSOR_ARCHITECTURE"),
        # Python.
        *("PYTHONPATH", "PYTHONHOME", "PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX"),
        *("PYTHONIOENCODING", "PYTHONUTF8", "PYTHONHASHSEED", "PYTHONNOUSERSITE", "PYTHONWARNINGS", "PYTHONMALLOC"),
        # The way to the network.
        *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "all_proxy", "no_proxy"),
        *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"),
        # Where models and data are kept, and whether the Hub may be asked.
        *("HF_HOME", "HF_ENDPOINT", "HF_ASSETS_CACHE", "HUGGINGFACE_HUB_CACHE", "HUGGINGFACE_ASSETS_CACHE"),
        *("TRANSFORMERS_OFFLINE", "TRANSFORMERS_CACHE", "TRANSFORMERS_VERBOSITY", "DATASETS_VERBOSITY", "DO_NOT_TRACK"),
        *("USE_TORCH", "LRU_CACHE_CAPACITY", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"),
    }
)
# Settings of the libraries that compute, of caches of the Hub's libraries, of languages, and our own.
_PASSED_PREFIXES = (
    *(
        "LORATORY_",
        "LC_",
        "HF_HUB_",
        "HF_XET_",
        "HF_DATASETS_",
        "TOKENIZERS_",
        "RAYON_",
        "ARROW_",
        "BNB_",
        "ACCELERATE_",
    ),
    *("CUDA_", "CUDNN_", "CUBLAS_", "NVIDIA_", "NCCL_", "GLOO_", "TORCH_", "TORCHINDUCTOR_", "PYTORCH_", "TRITON_"),
    *("OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "NUMEXPR_", "VECLIB_", "MALLOC_", "ONEDNN_"),
)
_SECRET_WORD = re.compile(
    r"(^|_)(API)?(TOKENS?|KEYS?|SECRETS?|PASS|PASSWORD|PASSWD|CREDENTIALS?|AUTH)(_|$)", re.IGNORECASE
)

_HUB_NAMES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH", "HF_STORED_TOKENS_PATH")
# huggingface_hub finds a login in a file as well.
_NO_HUB_LOGIN = {"HF_TOKEN_PATH": os.devnull, "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"}


class _Variables(NamedTuple):
    names: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ()

    def include(self, name: str) -> bool:
        return name in self.names or name.startswith(self.prefixes)


class Access(Enum):
    """What a process may log in to; the secrets for it stand in its environment."""

    HUB = _Variables(names=_HUB_NAMES)
    WANDB = _Variables(prefixes=("WANDB_",))
    TRACKIO = _Variables(prefixes=("TRACKIO_",))
    PACKAGE_INDEX = _Variables(prefixes=("PIP_",))


def environment_for(access: Collection[Access], inherited: Mapping[str, str] | None = None) -> dict[str, str]:
    """Choose what a process gets of an environment.

    Args:
        access: What it may log in to; nothing else's secrets are passed.
        inherited: The environment to choose from; ours by default.
    """
    source = os.environ if inherited is None else inherited
    chosen = {name: value for name, value in source.items() if _is_passed(name)}
    for variables in (member.value for member in access):
        chosen |= {name: value for name, value in source.items() if variables.include(name)}
    if Access.HUB not in access:
        chosen |= _NO_HUB_LOGIN
    elif "HF_HUB_DISABLE_IMPLICIT_TOKEN" in source:
        chosen["HF_HUB_DISABLE_IMPLICIT_TOKEN"] = source["HF_HUB_DISABLE_IMPLICIT_TOKEN"]
    return chosen


def has_hub_login() -> bool:
    """Whether there is a token for the Hub here, in the environment or where `hf auth login` puts it."""
    if any(os.environ.get(name) for name in _HUB_NAMES[:2]):
        return True
    cache = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return Path(os.environ.get("HF_TOKEN_PATH") or Path(cache) / "token").expanduser().is_file()


def give_up_access(access: Access) -> None:
    """Remove the secrets for something from this process's own environment, once it has been talked to."""
    for name in list(os.environ):
        if access.value.include(name):
            del os.environ[name]
    if access is Access.HUB:
        os.environ.update(_NO_HUB_LOGIN)


def _is_passed(name: str) -> bool:
    if name in _PASSED:
        return True
    return name.startswith(_PASSED_PREFIXES) and _SECRET_WORD.search(name) is None
