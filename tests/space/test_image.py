"""The Dockerfile, carried out step by step as user 1000 without a network, and what its command then serves."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from engine.space.repository import SpacePlan, space_files
from engine.wheel import build_wheel

pytestmark = pytest.mark.e2e

CONTAINER = Path(__file__).with_name("container.py")
ALONE = ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child"]


def _can_be_alone() -> bool:
    is_root = shutil.which("unshare") is not None and os.geteuid() == 0
    return is_root and subprocess.run([*ALONE, "true"], check=False, capture_output=True).returncode == 0


@pytest.fixture(scope="module")
def carry_out(tiny_model_folder):
    """Write a Space's files, follow its Dockerfile, start its command as asked, and return what was found."""
    if not _can_be_alone():
        pytest.skip("needs root and namespaces")
    root = Path(tempfile.mkdtemp(prefix="loratory-image-"))
    root.chmod(0o755)
    context = root / "context"
    context.mkdir()

    def run(*runs: dict) -> dict:
        work = Path(tempfile.mkdtemp(prefix="home-", dir=root))
        work.chmod(0o755)
        for name, content in space_files(SpacePlan("ada/loratory"), build_wheel()).items():
            (context / name).write_bytes(content)
        wanted = (context / "requirements.txt").read_text().splitlines()
        # What is on the index alone is not installed here.
        (context / "requirements.txt").write_text("\n".join(line for line in wanted if _is_installed(line)) + "\n")
        for path in shutil.copytree(tiny_model_folder, work / "tiny-model").iterdir():
            path.chmod(0o644)
        dockerfile = context / "Dockerfile"
        dockerfile.write_text(re.sub(r"space warm .*", "space warm /home/tiny-model", dockerfile.read_text()))
        packages = [str(Path(one)) for one in sys.path if one.endswith("site-packages")]
        order = {
            "work": str(work),
            "context": str(context),
            "python": sys.base_prefix,
            "packages": packages,
            "runs": runs,
        }
        done = subprocess.run(
            [*ALONE, sys.executable, str(CONTAINER)],
            input=json.dumps(order),
            capture_output=True,
            text=True,
            timeout=550,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    yield run
    shutil.rmtree(root, ignore_errors=True)


def _is_installed(line: str) -> bool:
    try:
        return bool(metadata.version(Requirement(line).name))
    except metadata.PackageNotFoundError:
        return False


def test_at_home_the_image_serves_its_own_loopback_alone(carry_out):
    found = carry_out({"environment": {}, "seconds": 60})

    (run,) = found["runs"]
    assert run["status"] == 200, run
    assert run["listens_on"] == ["0100007F"]  # 127.0.0.1
    assert found["owned"] == ["/home/user"]
