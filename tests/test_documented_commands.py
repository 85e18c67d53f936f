"""Every command in the README and the documentation: it exists with its options, and does what it is there for.

What needs the Hub, root, a cluster or a download is marked in `NEEDS`; all else runs as written, on a tiny model.
"""

import io
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from loratory.engine.accounts.listener import bound_socket
from loratory.engine.cli import build_app
from loratory.engine.paths import LoratoryHome, local_owner
from loratory.engine.runs.store import RunStore
from tests.e2e.test_scripts_for_real import run_here

ROOT = Path(__file__).parents[1]
GENERATED = {"settings.md", "cli.md", "events.md"}
PAGES = [
    ROOT / "README.md",
    ROOT / ".github" / "CONTRIBUTING.md",
    *(page for page in sorted((ROOT / "docs").glob("*.md")) if page.name not in GENERATED),
]
PROGRAMS = {
    "loratory",
    "python",
    "python3",
    "pip",
    "pytest",
    "hf",
    "docker",
    "sudo",
    "make",
    "slurmd",
    "pre-commit",
    "ssh",
}
# Commands by how they begin, with what they need that a test does not have.
NEEDS = {
    "python3 -m venv": "a download: what .ci/run sets up and runs first",
    "python3 -m pip wheel": "a download",
    "pip": "a download",
    "pre-commit": "a download",
    "pytest": "this test is in it",
    "make": "a download; it calls what .ci/run calls",
    "hf": "the Hub",
    "docker": "a Docker daemon",
    "sudo": "root",
    "slurmd": "a Slurm installation; tests/slurm starts one",
    "loratory space": "the Hub; tests/space has a fake one",
    "loratory push": "the Hub; tests/export has a fake one",
    "loratory cluster": "a Slurm cluster; tests/slurm starts one",
    "python docs/generate.py": "to write into the repository; test_docs.py runs it with --check",
    "loratory resume": "a run that was stopped; tests/commands, tests/slurm and tests/jobs resume one",
    "loratory train qwen3-8b-qlora-12gb": "Hugging Face Jobs; tests/jobs has a fake of them",
    "loratory train CONFIG --where slurm": "a Slurm cluster; tests/slurm starts one",
    "loratory estimate CONFIG --measure": "a worker of its own; tests/commands runs it",
    "loratory try-reward": "a run that learns from rewards; tests/e2e has one",
    "loratory train quickstart-grpo-cpu": "minutes; tests/training has shorter ones",
    "loratory evaluate RUN --test": "a test set; tests/e2e has one, tests/evaluation another of HumanEval",
    "loratory evaluate RUN --lm-eval": "lm-eval; tests/evaluation has a stand-in",
    "loratory runs --sort": "a test set; tests/commands has one",
    "loratory project-tests": "a file; tests/commands has one",
    "loratory export RUN --to …": "no command, but the form of several",
    "loratory ui --lab … --oidc FILE": "no command, but the form of several; tests/ui/front signs in",
    "loratory lab files --oidc": "a file of root; tests/ui/front signs in",
    "loratory lab backup": "a lab; tests/accounts has one",
    "loratory lab restore": "a lab; tests/accounts has one",
    "loratory sweep": "minutes; examples/sweep.sh is run by a test",
    "loratory people": "a lab; tests/commands has one",
    "loratory train quickstart-cpu --set dataset.source=set": "a set; tests/training has one",
    **dict.fromkeys(
        (f"loratory data {name}" for name in "add edit show rename diff export".split()),
        "a set; tests/commands has one",
    ),
    "loratory data check DATA --only": "a benchmark; tests/data has one",
    "loratory data generate": "an endpoint; tests/commands has one",
    "loratory data review": "a job; tests/commands has one",
    "loratory merge": "two runs; tests/export has some",
    "loratory machine": "a machine; tests/ssh starts one",
    "loratory train CONFIG --where ssh": "a machine; tests/ssh starts one",
    "ssh": "a machine",
    "loratory mcp": "an agent; tests/interface has one",
    "loratory check": "a server; tests/e2e has some",
    "loratory votes": "votes; examples/dpo_from_votes.sh is run by a test",
    "python -m tests": "minutes; a benchmark",
}  # fmt: skip
SERVERS = ("loratory ui", "loratory serve", "python app.py")


def commands_of(page: Path) -> list[str]:
    """Return the commands of a page in their order: lines of its `sh` blocks, and words in backquotes."""
    text = page.read_text(encoding="utf-8")
    matches = re.findall(r"^```sh\n(.*?)^```|(?<!`)`([^`\n]+)`(?!`)", text, re.DOTALL | re.MULTILINE)
    lines = [
        line for block, inline in matches for line in (block.replace("\\\n", " ").splitlines() if block else [inline])
    ]
    commands = [" ".join(command.split()) for line in lines for command in without_comment(line).split(" && ")]
    commands = [command.replace(".venv/bin/", "") for command in commands]
    return [command for command in commands if command.split(" ")[0] in PROGRAMS and " " in command]


def without_comment(line: str) -> str:
    return re.split(r"(?:^|\s)#\s", line)[0]


def needs(command: str) -> str | None:
    """Return what a command needs that a test does not have."""
    return next((reason for start, reason in NEEDS.items() if begins(command, start)), None)


def begins(command: str, start: str) -> bool:
    return command == start or command.startswith((f"{start} ", f"{start}.", f"{start}:"))


EVERYTHING = [(page, command) for page in PAGES for command in commands_of(page)]


def test_commands_are_found_and_each_reason_is_one_of_a_command():
    assert len(EVERYTHING) > 60
    assert [start for start in NEEDS if not any(begins(command, start) for _, command in EVERYTHING)] == []


@pytest.mark.parametrize(
    "command", dict.fromkeys(command for _, command in EVERYTHING if command.startswith("loratory "))
)
def test_a_command_of_the_documentation_exists_with_its_options(command):
    _, *arguments = shlex.split(command)
    group = typer.main.get_command(build_app())
    for name in arguments:
        if not hasattr(group, "commands"):
            break
        assert name in group.commands, f"no command {name} of {group.name}"
        group = group.commands[name]
    if group.context_settings.get("ignore_unknown_options"):  # another parser has them
        return
    options = {option for parameter in group.params for option in (*parameter.opts, *parameter.secondary_opts)}
    assert {word.partition("=")[0] for word in arguments if word.startswith("--")} <= options


class Terminal:
    """Runs commands as a person would who replaces RUN, CONFIG, MODEL and DATA by their own.

    The first one and servers are processes of their own; the import of the others would take most of their time.

    Attributes:
        FIRST: Is run first, and makes RUN.
    """

    FIRST = "loratory train quickstart-cpu"

    def __init__(self, folder: Path, model: Path) -> None:
        self._folder, self._model = folder, model
        self._home = LoratoryHome(folder / "home")
        self._own = {"CONFIG": "quickstart-cpu", "MODEL": str(model), "smollm2-135m-instruct": str(model)}
        self._own["DATA"] = "sample:loratory-faq"
        self.run(self.FIRST)
        (run,) = RunStore(self._home, local_owner()).list()
        self._own["RUN"] = run.id

    def run(self, command: str) -> None:
        """Run a command to its end, a server until it prints its address."""
        arguments = [self._own.get(word, word) for word in shlex.split(command)]
        arguments = [word.replace("=RUN", f"={self._own.get('RUN')}") for word in arguments]
        settings = [f"model.id={self._model}", "training.max_steps=2", "training.max_length=64", "run.devices=cpu"]
        if arguments[1] in ("train", "sweep", "estimate", "script"):
            arguments += [word for setting in settings for word in ("--set", setting)]
        is_server = command.startswith(SERVERS)
        if arguments[0] == "loratory" and not is_server and command != self.FIRST:
            self._run_here(command, arguments[1:])
            return
        with bound_socket("127.0.0.1", 0) as reserved:  # until the end: another process may take a free port
            if is_server:
                port = str(reserved.getsockname()[1])
                arguments = [*(word for word in arguments if word not in ("--port", "7861")), "--port", port]
            self._run_process(command, arguments, is_server=is_server)

    def _run_process(self, command: str, arguments: list[str], *, is_server: bool) -> None:
        program = [str(Path(sys.executable).with_name("loratory"))] if arguments[0] == "loratory" else [sys.executable]
        process = subprocess.Popen(
            [*program, *arguments[1:]],
            cwd=ROOT if "app.py" in arguments else self._folder,
            env={**os.environ, "LORATORY_HOME": str(self._home.root)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell in the background ignores it
        )
        assert process.stdout is not None
        output = []
        for line in process.stdout:
            output.append(line)
            if is_server and "http://127.0.0.1:" in line:
                process.send_signal(signal.SIGINT)
        assert process.wait() == 0, f"{command}: {''.join(output)[-3000:]}"
        assert not is_server or "http://127.0.0.1:" in "".join(output)

    def _run_here(self, command: str, arguments: list[str]) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(self._folder)
            patch.setattr("sys.stdin", io.StringIO())  # without input, as in a script
            code, out, err = run_here(*arguments, home=self._home)
        assert code == 0, f"{command}: {(out + err)[-3000:]}"


@pytest.fixture(scope="module")
def terminal(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> Terminal:
    return Terminal(tmp_path_factory.mktemp("terminal"), tiny_model_folder)


def is_whole(command: str) -> bool:
    """Whether a command has its arguments: else a sentence only names it."""
    return len(command.split()) > 2 or command in ("loratory runs", "loratory ui", "loratory presets", "python app.py")


@pytest.mark.e2e
@pytest.mark.parametrize(
    "command", dict.fromkeys(command for _, command in EVERYTHING if is_whole(command) and not needs(command))
)
def test_a_command_of_the_documentation_does_what_it_is_there_for(terminal, command):
    if command != terminal.FIRST:
        terminal.run(command)
