import os
import subprocess
import sys
from pathlib import Path

import pytest

import loratory.engine.commands
from loratory.engine.cli import COMMAND_MODULES, run_command

FAILING = """
from loratory.engine.errors import ConfigError, ModelError, Problem

def mend() -> None:
    raise ModelError("The model is gone.", "Choose another.")

def crash() -> None:
    raise KeyError("surprise")

def wrong() -> None:
    raise ConfigError([Problem("a.b", "it is 1."), Problem("c.d", "it is 2.")])

def fine(number: int = 1) -> None:
    print("fine", number)

COMMANDS = (mend, crash, wrong, fine)
"""


@pytest.fixture
def failing(tmp_path, monkeypatch):
    (tmp_path / "failing_commands.py").write_text(FAILING)
    monkeypatch.syspath_prepend(str(tmp_path))
    return ("failing_commands",)


def test_a_mistake_is_two_sentences_on_stderr_and_exit_code_one(failing, capsys):
    assert run_command(["mend"], failing) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err == "The model is gone. Choose another.\n"


def test_all_problems_of_a_config_are_listed(failing, capsys):
    assert run_command(["wrong"], failing) == 1
    err = capsys.readouterr().err
    assert "2 problems" in err
    assert "  a.b: it is 1.\n  c.d: it is 2.\n" in err


def test_the_unexpected_is_one_line_without_a_traceback(failing, capsys, monkeypatch):
    assert run_command(["crash"], failing) == 1
    err = capsys.readouterr().err
    assert "Something unexpected happened (KeyError" in err
    assert "Traceback" not in err

    monkeypatch.setenv("LORATORY_DEBUG", "1")
    run_command(["crash"], failing)
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["nosuch"], ["fine", "--nosuch"]])
def test_wrong_usage_exits_with_two(failing, capsys, arguments):
    assert run_command(arguments, failing) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert "Usage: loratory" in output.err


def test_success_exits_with_zero(failing, capsys):
    assert run_command(["fine"], failing) == 0
    assert run_command(["--help"], failing) == 0
    assert "fine 1" in capsys.readouterr().out


def test_help_of_all_commands_comes_without_the_heavy_libraries(tmp_path):
    script = (
        "import sys; from loratory.engine.cli import run_command; code = run_command(['--help']); "
        "print(sorted({'torch', 'transformers', 'gradio', 'pandas', 'plotly', 'datasets', 'huggingface_hub'} & set(sys.modules)), "
        "file=sys.stderr); sys.exit(code)"
    )
    result = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env={**os.environ, "LORATORY_HOME": str(tmp_path)},
    )

    assert result.returncode == 0, result.stderr
    assert result.stderr.strip() == "[]"
    for command in ("ui", "train", "presets", "models", "inspect", "render", "estimate", "runs", "show", "stop", "cancel",
                    "resume", "delete", "chat"):  # fmt: skip
        assert f"\n  {command} " in result.stdout, command


def test_every_module_of_commands_is_part_of_the_program():
    registering = {
        f"loratory.engine.commands.{path.stem}"
        for path in Path(loratory.engine.commands.__file__ or "").parent.glob("*.py")
        if "\nCOMMANDS = " in path.read_text(encoding="utf-8")
    }
    assert registering == set(COMMAND_MODULES)


def test_a_home_that_cannot_be_written_is_one_clear_message(capsys, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("LORATORY_HOME", str(tmp_path / "file"))

    assert run_command(["runs"], ("loratory.engine.commands.runs",)) == 1
    assert "cannot be written (File exists). Set LORATORY_HOME" in capsys.readouterr().err
