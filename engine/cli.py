"""The `loratory` command: everything that the page does, scriptable.

Results go to stdout, with `--json` as one object and nothing else; progress and errors go to stderr. A mistake of the
person or the machine is two sentences and exit code 1, wrong usage exit code 2; a traceback never shows.
"""

import importlib
import logging
import os
import sys
import traceback
from collections.abc import Sequence

import typer

from loratory.engine.errors import EngineError

# Each lists its commands. What takes long to import is imported where it is used, so `--help` comes at once.
COMMAND_MODULES = tuple(
    f"loratory.engine.commands.{name}"
    for name in "train configs data data_sets estimate try_reward runs chat evaluate export machine lab space".split()
)
_ALL_ARE_ARGUMENTS = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}


def build_app(modules: Sequence[str] = COMMAND_MODULES) -> typer.Typer:
    """Put the commands of all modules together."""
    app = typer.Typer(
        name="loratory",
        help="Fine-tune language models with PEFT: see which tokens are trained, know what fits, train, chat, export.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        rich_markup_mode=None,
    )
    for name in modules:
        module = importlib.import_module(name)
        for command in module.COMMANDS:
            if isinstance(command, typer.Typer):
                app.add_typer(command)
            else:
                app.command()(command)
        for command in getattr(module, "PASSED_ON", ()):
            app.command(context_settings=_ALL_ARE_ARGUMENTS)(command)
    return app


def main() -> None:
    """Run the command that the arguments name, and exit with its code."""
    sys.exit(run_command(sys.argv[1:]))


def run_command(arguments: Sequence[str], modules: Sequence[str] = COMMAND_MODULES) -> int:
    """Run one command; returns the exit code, and never lets an exception out."""
    logging.basicConfig(stream=sys.stderr, level=logging.ERROR, format="%(message)s")
    try:
        build_app(modules)(args=list(arguments), prog_name="loratory")
    except SystemExit as wanted:  # Typer has printed the usage error
        return wanted.code if isinstance(wanted.code, int) else 1
    except EngineError as error:
        # A list of problems has lines of its own.
        _say(f"{error.what.rstrip()}\n{error.fix}" if "\n" in error.what else str(error))
        return 1
    except KeyboardInterrupt:
        _say("Interrupted.")
        return 130
    except Exception as error:
        _say(
            f"Something unexpected happened ({type(error).__name__}: {str(error)[:200]}). "
            "Please report it; LORATORY_DEBUG=1 shows where it happened."
        )
        if os.environ.get("LORATORY_DEBUG"):
            traceback.print_exc()
        return 1
    return 0


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
