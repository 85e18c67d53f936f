"""The Triton kernel of the loss: interpreted on this processor, and compiled for GPUs that need not be here."""

import importlib.util
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

HAS_TRITON = importlib.util.find_spec("triton") is not None
IS_IN_CI = bool(os.environ.get("CI")) and sys.platform == "linux" and platform.machine() == "x86_64"
pytestmark = pytest.mark.skipif(not HAS_TRITON and not IS_IN_CI, reason="needs triton")


def run(*arguments, **environment):
    parent_environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("TRITON_", "PYTEST_"))
    }
    paths = os.pathsep.join(str(Path(path or ".").resolve()) for path in sys.path)
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, env={**parent_environment, "PYTHONPATH": paths, **environment}, capture_output=True, text=True
    )


@pytest.mark.e2e
def test_it_gives_what_the_reference_gives():
    cases = Path(__file__).with_name("triton_loss_cases.py")
    process = run(
        "-m", "pytest", "--noconftest", "-q", "-n0", "-p", "no:cacheprovider", str(cases), TRITON_INTERPRET="1"
    )  # fmt: skip

    assert process.returncode == 0, process.stdout[-3000:]


# Interpreted code need not compile: a name that changes its type in a loop does not.
_COMPILE = """
import itertools, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from loratory.engine.training.ops.triton_loss import _cross_entropy
kinds = dict(logits_ptr="*bf16", row_stride="i32", targets_ptr="*i64", losses_ptr="*fp32", normalizers_ptr="*fp32",
             factors_ptr="*fp32", vocabulary="i32", scale="fp32", cap="fp32", gradient_sum="fp32")
flags = "HAS_CAP KNOWS_NORMALIZER WRITES_GRADIENT CHOOSES_FACTOR".split()
used = [(0, 0, 1, 0), (1, 0, 1, 1), (1, 1, 1, 0), (1, 0, 0, 0)]
for number, values in enumerate(used):
    constants = dict(zip(flags, map(bool, values))) | {"BLOCK": 16384}
    names = [*kinds, *constants]
    signature = kinds | {name: "constexpr" for name in constants}
    source = ASTSource(_cross_entropy, signature, {(names.index(name),): value for name, value in constants.items()})
    compiled = triton.compile(source, target=GPUTarget("cuda", (75, 80, 90)[number % 3], 32), options={"num_warps": 16})
    assert compiled.asm["cubin"]
print("compiled", len(used))
"""


@pytest.mark.e2e
def test_it_compiles_for_gpus(tmp_path):
    process = run("-c", _COMPILE, TRITON_CACHE_DIR=str(tmp_path))

    assert "compiled 4" in process.stdout, process.stderr[-2000:]
