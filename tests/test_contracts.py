"""Who may import whom: checked statically, and by looking at what a fresh interpreter has loaded."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("torch", "transformers", "peft", "trl", "bitsandbytes", "accelerate", "datasets", "pyarrow.parquet")


def loaded_by(statement: str) -> set[str]:
    """Heavy packages that a fresh interpreter has loaded after a statement."""
    code = f"{statement}\nimport sys\nprint(*[name for name in {HEAVY!r} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(result.stdout.split())


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    """Run import-linter on a checkout."""
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as run; run(['--no-cache'])"]
    return subprocess.run(
        command, cwd=folder, env={**os.environ, "PYTHONPATH": ".package"}, capture_output=True, text=True
    )


def test_the_page_and_the_command_start_without_the_heavy_libraries():
    assert loaded_by("import loratory.ui.build, loratory.ui.serve, loratory.engine.cli, app") == set()


def test_the_contracts_hold():
    result = lint_imports(ROOT)

    assert result.returncode == 0, result.stdout
    assert "6 kept, 0 broken" in result.stdout


# At least one for each contract.
BROKEN = {
    "engine/memory/estimate.py": "import torch",
    "engine/config/run.py": "import loratory.engine.runs.store",
    "engine/runs/store.py": "import gradio",
    "engine/data/source.py": "import loratory.engine.supervision.queue",
    "ui/backend/models.py": "import gradio",
    "ui/page.py": "import loratory.engine.training.loops.supervised",
    "engine/evaluation/job.py": "import sacrebleu",
}


def test_a_broken_contract_breaks_the_build(tmp_path):
    package = tmp_path / ".package" / "loratory"
    package.mkdir(parents=True)
    shutil.copy(ROOT / ".package" / "loratory" / "__init__.py", package)
    for name in ("engine", "ui"):
        shutil.copytree(ROOT / name, package / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for file, line in BROKEN.items():
        with (package / file).open("a") as source:
            source.write(f"\n{line}\n")

    result = lint_imports(tmp_path)

    assert result.returncode != 0, result.stdout
    assert "0 kept, 6 broken" in result.stdout, result.stdout
    for file, line in BROKEN.items():
        importer = f"loratory.{file.removesuffix('.py').replace('/', '.')}"
        target = line.removeprefix("import ")
        assert f"{importer} -> {target}" in result.stdout, result.stdout
