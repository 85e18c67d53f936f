"""ZeroGPU of Hugging Face: a Space borrows a GPU for each answer, in a separate process."""

import contextlib
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from loratory.engine.errors import DeviceError
from loratory.engine.hardware.device import Device
from loratory.engine.processes.spawn import spawn, worker_argv

ZERO_GPU = "zero-a10g"  # as hardware of a Space
TOKEN_HEADER = "x-ip-token"  # noqa: S105 - Hugging Face's proxy sets it; names whose quota a request uses
LONGEST_TOKEN = 8192
WORKER_MODULE = "loratory.engine.chat.worker.zero_gpu"
REPORT = "--report"
_VARIABLES = re.compile(r"(SPACES_ZERO|ZERO_?GPU)_\w+")  # that the `spaces` library reads
_REPORT_SECONDS = 120.0
# The smaller of the two GPUs that are lent, as `spaces` 0.51 describes it in zero/configs.json.
_MEMORY_BYTES = 48 * 1024**3


@dataclass(frozen=True)
class ZeroGpu:
    """The variables of a Space on such hardware."""

    # For the process that borrows the GPU. The page must not have them: Gradio would load torch there.
    variables: Mapping[str, str]

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> "ZeroGpu | None":
        """Read the environment of a Space; None on other hardware."""
        if environment.get("SPACES_ZERO_GPU", "").lower() not in ("1", "t", "true"):
            return None
        return cls({name: value for name, value in environment.items() if _VARIABLES.fullmatch(name)})

    @property
    def device(self) -> Device:
        """The GPU that will be lent."""
        return Device("cuda", 0, "ZeroGPU", _MEMORY_BYTES, _MEMORY_BYTES, has_fast_bfloat16=True)

    def report(self, log_file: Path) -> None:
        """Report to Hugging Face that this Space has a function to lend a GPU to, as it expects before the page is served.

        Raises:
            DeviceError: If it fails; chat then has no GPU.
            WorkerError: If no process can be started.
        """
        process = spawn(worker_argv(WORKER_MODULE, [REPORT]), log_file=log_file, environment=self.variables)
        with contextlib.suppress(subprocess.TimeoutExpired):
            if process.wait(_REPORT_SECONDS) == 0:
                return
        process.kill()
        process.wait()
        what = "This Space could not register with ZeroGPU."
        raise DeviceError(what, f"See {log_file.name}, then restart the Space.")
