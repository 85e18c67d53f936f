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

from loratory.engine.space.repository import SpacePlan, space_files
from loratory.engine.wheel import build_wheel

pytestmark = pytest.mark.e2e

CONTAINER = Path(__file__).with_name("container.py")
ALONE = ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]


def _can_be_alone() -> bool:
    is_root = shutil.which("unshare") is not None and os.geteuid() == 0
    return is_root and subprocess.run([*ALONE, "true"], check=False, capture_output=True).returncode == 0


IN_A_SPACE = {
    "SPACE_ID": "ada/loratory",
    "SPACE_HOST": "ada-loratory.hf.space",
    "SPACE_AUTHOR_NAME": "ada",
    "SPACE_CREATOR_USER_ID": "5e9ecfc04957053f60648a3e",
    "OAUTH_CLIENT_ID": "client",
    "OAUTH_CLIENT_SECRET": "CanaryThatMustNeverBeSeenAnywhere44",
    "OAUTH_SCOPES": "openid profile jobs contribute-repos gated-repos",
    "OPENID_PROVIDER_URL": "https://huggingface.co",
}
SPACE = {"environment": IN_A_SPACE, "headers": {"Host": "ada-loratory.hf.space", "X-Forwarded-Proto": "https"}}
RUNS = {
    "home": {"environment": {}},
    "space": SPACE,
    # Whose app.py must not be taken for Loratory's own.
    "gradio": SPACE | {"command": ["python", "app.py"], "folder": "/home/gradio"},
}


@pytest.fixture(scope="module")
def report(tiny_model_folder):
    """Write a Space's files, follow its Dockerfile, start its command for each run, and return what was found."""
    if not _can_be_alone():
        pytest.skip("needs root and namespaces")
    with tempfile.TemporaryDirectory(prefix="loratory-image-", ignore_cleanup_errors=True) as root:
        Path(root).chmod(0o755)
        context, work, wheel = Path(root) / "context", Path(root) / "home", build_wheel()
        files = space_files(SpacePlan("ada/loratory"), wheel)
        _write(files, context)
        _write(space_files(SpacePlan("ada/loratory", "gradio"), wheel), work / "gradio")
        # What is on the index alone is not installed here, and no model comes without a network.
        requirements = files["requirements.txt"].decode().splitlines()
        (context / "requirements.txt").write_text("".join(f"{line}\n" for line in requirements if _is_installed(line)))
        dockerfile = re.sub(r"space warm .*", "space warm /home/tiny-model", files["Dockerfile"].decode())
        (context / "Dockerfile").write_text(dockerfile)
        for path in shutil.copytree(tiny_model_folder, work / "tiny-model").iterdir():
            path.chmod(0o644)
        order = {
            "work": str(work),
            "context": str(context),
            "python": sys.base_prefix,
            "packages": [folder for folder in sys.path if folder.endswith("site-packages")],
            "runs": list(RUNS.values()),
        }
        script = [*ALONE, sys.executable, str(CONTAINER)]
        process = subprocess.run(
            script, input=json.dumps(order), capture_output=True, text=True, timeout=1500, check=False
        )
        assert process.returncode == 0, process.stderr
        answer = json.loads(process.stdout)
        yield answer | {"runs": dict(zip(RUNS, answer["runs"], strict=True))}


def _write(files: dict[str, bytes], folder: Path) -> None:
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


def _is_installed(line: str) -> bool:
    try:
        return bool(metadata.version(Requirement(line).name))
    except metadata.PackageNotFoundError:
        return False


def test_at_home_it_serves_the_loopback_of_its_container_alone(report):
    run = report["runs"]["home"]
    assert run["status"] == 200, run["log"]
    assert run["listens_on"] == ["0100007F"]  # 127.0.0.1


@pytest.mark.parametrize("kind", ["space", "gradio"])
def test_in_a_space_it_answers_everyone_and_lets_no_stranger_in(report, kind):
    run = report["runs"][kind]
    assert run["status"] == 200, run["log"]
    assert run["listens_on"] == ["00000000"]  # 0.0.0.0
    assert "Duplicate this Space" in run["text"]
    assert "gradio_config" not in run["text"]
    assert IN_A_SPACE["OAUTH_CLIENT_SECRET"] not in run["text"] + run["log"]


def test_only_the_home_folder_belongs_to_its_user(report):
    assert report["owned"] == ["/home/user"]
