"""What Hugging Face Jobs offers and accepts: its hardware, the keys of a job, and the faults that tests ask for."""

import json
import re
from dataclasses import dataclass
from typing import Any, Literal


def _hardware(
    name: str, title: str, cpu: str, ram: str, gpu: tuple[str, str, str] | None, per_hour: float
) -> dict[str, Any]:
    accelerator = None
    if gpu is not None:
        model, quantity, vram = gpu
        accelerator = {"type": "gpu", "model": model, "quantity": quantity, "vram": vram, "manufacturer": "Nvidia"}
    return {
        "name": name, "prettyName": title, "cpu": cpu, "ram": ram, "ephemeralStorage": "50 GB", "accelerator": accelerator,
        "unitCostMicroUSD": round(per_hour / 60 * 1e6), "unitCostUSD": per_hour / 60, "unitLabel": "minute",
    }  # fmt: skip


HARDWARE: list[dict[str, Any]] = [
    _hardware("cpu-basic", "CPU Basic", "2 vCPU", "16 GB", None, 0.01),
    _hardware("cpu-upgrade", "CPU Upgrade", "8 vCPU", "32 GB", None, 0.03),
    _hardware("t4-small", "Nvidia T4 - small", "4 vCPU", "15 GB", ("T4", "1", "16 GB"), 0.4),
    _hardware("l4x1", "1x Nvidia L4", "8 vCPU", "30 GB", ("L4", "1", "24 GB"), 0.8),
    _hardware("a10g-large", "Nvidia A10G - large", "12 vCPU", "46 GB", ("A10G", "1", "24 GB"), 1.5),
    _hardware("l40sx1", "1x Nvidia L40S", "8 vCPU", "62 GB", ("L40S", "1", "48 GB"), 1.8),
    _hardware("a100-large", "Nvidia A100 - large", "12 vCPU", "142 GB", ("A100", "1", "80 GB"), 2.5),
    _hardware("l4x4", "4x Nvidia L4", "48 vCPU", "186 GB", ("L4", "4", "96 GB"), 3.8),
]


_SPEC_KEYS = {
    "command", "arguments", "environment", "secrets", "flavor", "timeoutSeconds", "attempts", "labels", "volumes", "dockerImage",
}  # fmt: skip


def wrong_with(spec: dict[str, Any], token: str) -> str:
    """What the real service would refuse, by what `HfApi.run_job` may send."""
    if unknown := spec.keys() - _SPEC_KEYS:
        return f"unknown keys {sorted(unknown)}"
    if spec["flavor"] not in [one["name"] for one in HARDWARE]:
        return f"unknown flavor {spec['flavor']}"
    if not all(isinstance(part, str) for part in spec["command"]) or not spec["command"]:
        return "a command is a list of strings"
    if not isinstance(spec.get("timeoutSeconds"), int) or spec["timeoutSeconds"] <= 0:
        return "timeoutSeconds is a positive whole number"
    if not all(re.fullmatch(r"[A-Za-z0-9._-]{1,100}", text) for text in (*spec["labels"], *spec["labels"].values())):
        return "a label has letters, digits, dots, - and _"
    if any(secret in json.dumps({**spec, "secrets": None}) for secret in spec.get("secrets", {}).values() or [token]):
        return "the token is outside the secrets"
    return ""


Step = Literal[
    "whoami", "hardware", "submit", "find", "inspect", "cancel", "logs", "make", "about", "tree", "batch", "storage"
]


@dataclass
class Fault:
    """What goes wrong at a step, so many times: a status instead of an answer, or a connection that is cut."""

    step: Step
    what: int | Literal["reset", "lost"]  # before, or after it was done
    times: int = 1
