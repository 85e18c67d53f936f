"""The check of names: nothing in the project fails it, and what it forbids does."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def check(*files: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, ".ci/names.py", *files], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_no_name_of_the_project_is_forbidden():
    assert check().stdout == ""


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("for one in ():\n    pass", "one"),
        ("words: str = 'a b'", "words"),
        ("def of(value): ...", "of"),
        ("def _look_again(): ...", "_look_again"),
        ("async def ask(): ...", "ask"),
        ("kept = 1", "kept"),
        ("def read(told): ...", "told"),
        (f"def test_{'x' * 80}(): ...", f"test_{'x' * 80}"),
    ],
)
def test_a_forbidden_name_fails_with_its_line(tmp_path, line, name):
    file = tmp_path / "module.py"
    file.write_text(f"{line}\n")

    result = check(file)

    assert result.returncode == 1
    assert result.stdout.startswith(f"{file}:1: {name}: ")
