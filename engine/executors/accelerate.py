"""Jobs of several processes on this machine, one for each device, under torch's launcher."""

import sys

from engine.executors.base import JobSpec
from engine.executors.local import WORKER_MODULE, LocalExecutor


class AccelerateExecutor(LocalExecutor):
    """Starts one process per device; with one device it is the same as `LocalExecutor`."""

    name = "accelerate"

    def command(self, spec: JobSpec) -> list[str]:
        """Return the command line of torch's launcher.

        The processes meet at a port that the system chooses when it is bound: Accelerate's own launcher has a fixed one,
        where two runs that start at once collide, and reads the person's own configuration.
        """
        if len(spec.devices) == 1:
            return super().command(spec)
        return [
            *(sys.executable, "-P", "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"),
            # Named, or variables of the environment decide them.
            *("--nnodes", "1", "--nproc-per-node", str(len(spec.devices)), "--max-restarts", "0"),
            *("--module", WORKER_MODULE, str(spec.run.folder.path)),
        ]
