"""All executors, by the name that `RunSection.executor` gives them."""

from collections.abc import Callable, Mapping

from engine.executors.base import Executor
from engine.executors.huggingface_jobs.executor import JobsExecutor
from engine.executors.huggingface_jobs.login import LoginOf
from engine.executors.local import AccelerateExecutor, LocalContext, LocalExecutor, WorkerCommand
from engine.executors.slurm.executor import SlurmExecutor

ExecutorFactory = Callable[[LocalContext], Mapping[str, Executor]]


def make_executors(
    context: LocalContext, command: WorkerCommand | None = None, login_of: LoginOf | None = None
) -> Mapping[str, Executor]:
    """Return every executor of a home, by name.

    Args:
        command: Another way to start workers on this machine, for tests.
        login_of: Returns a person's login at Hugging Face.
    """
    here = (kind(context, command) for kind in (LocalExecutor, AccelerateExecutor))
    home = context.book.home
    return {executor.name: executor for executor in (*here, JobsExecutor(home, login_of), SlurmExecutor(home))}
