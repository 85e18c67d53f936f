"""`loratory cluster`: describe a Slurm cluster that shares the home, and check that runs can train there."""

import secrets
import time
from typing import Annotated

import typer

from engine.commands.output import AsJson, print_result
from engine.errors import ClusterError, ClusterUnreachableError
from engine.executors.slurm import probe as probes
from engine.executors.slurm.commands import Slurm
from engine.executors.slurm.discovery import differences, list_groups, propose, to_yaml, unknown_types, write_place
from engine.executors.slurm.place import CLUSTER_FILE, ClusterPlace, has_place, read_place
from engine.executors.slurm.reasons import ENDED_STATES, waits_words
from engine.paths import LoratoryHome

cluster = typer.Typer(name="cluster", help="A Slurm cluster: describe it, check it.", no_args_is_help=True)

_LOOK_SECONDS = 1.0
_FILE_SERVER_SECONDS = 90.0  # after the end of the job, for a file server to show what it wrote


@cluster.command()
def discover(
    replace: Annotated[bool, typer.Option("--replace", help=f"Replace {CLUSTER_FILE}; the old one is kept.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write cluster.yaml from what sinfo shows."""
    home = LoratoryHome.from_environment()
    proposal = propose(list_groups(Slurm()))
    if has_place(home) and not replace:
        different = differences(home, proposal)
        text = "\n".join(f"  {line}" for line in different) or "  nothing"
        raise ClusterError(
            f"There is a {CLUSTER_FILE} already; it differs from what sinfo shows in:\n{text}\n",
            "Edit it, or replace it with --replace.",
        )
    write_place(home, proposal)
    words = [to_yaml(proposal), f"Written to {home.root / CLUSTER_FILE}. Edit it, then run `loratory cluster check`."]
    if unknown := unknown_types(proposal):
        words.append(f"Memory assumed, so check it: {', '.join(unknown)}.")
    print_result(proposal.model_dump(mode="json"), "\n".join(words), as_json=as_json)


@cluster.command()
def check(
    gpu_type: Annotated[str | None, typer.Option("--gpu-type", help="Check this type of GPU, else the first.")] = None,
    wait: Annotated[float, typer.Option("--wait", min=1, help="Seconds to wait for the job.")] = 600.0,
    as_json: AsJson = False,
) -> None:
    """Submit a small job that reports GPU, memory, versions and network of a node."""
    home = LoratoryHome.from_environment()
    place = read_place(home)
    names = [kind.name for kind in place.gpu_types]
    if gpu_type is not None and gpu_type not in names:
        raise ClusterError(
            f"{CLUSTER_FILE} has no GPU type {gpu_type!r}.", f"Its types are {', '.join(names) or 'none'}."
        )
    kind = gpu_type if gpu_type is not None else next(iter(names), "")
    slurm = Slurm(place.command_seconds)
    probe = probes.submit_probe(home, place, slurm, kind, secrets.token_hex(6))
    try:
        report = _await(slurm, probe, wait)
    except BaseException:
        slurm.cancel(probe.job_id)
        raise
    problems = find_problems(place, kind, report)
    print_result(
        {"job": probe.job_id, **report.model_dump(mode="json"), "problems": problems},
        _words(probe.job_id, report, problems),
        as_json=as_json,
    )
    probes.clear_probe(probe)
    if problems:
        raise typer.Exit(1)


def _await(slurm: Slurm, probe: probes.Probe, wait_seconds: float) -> probes.ProbeReport:
    deadline, last_words = time.monotonic() + wait_seconds, ""
    ended_at: float | None = None
    while True:
        if (report := probes.read_probe(probe)) is not None:
            return report
        now, line = time.monotonic(), None
        try:
            queue = slurm.queue()
            line = probes.line_of(probe, queue)
        except ClusterUnreachableError as error:
            words = error.what
        else:
            words = waits_words(line)[0] if line is not None and line.state == "PENDING" else ""
            if line is None or line.state in ENDED_STATES:
                ended_at = ended_at or now
        if words and words != last_words:
            typer.echo(words, err=True)
            last_words = words
        has_failed = line is not None and line.state in ENDED_STATES - {"COMPLETED"}
        if has_failed or (ended_at is not None and now - ended_at > _FILE_SERVER_SECONDS):
            end = f"ended with {line.state}" if line is not None else "ended"
            raise ClusterError(
                f"Job {probe.job_id} {end} and reported nothing.",
                f"See {probe.log}; is the folder of LORATORY_HOME the same there, and the Python of {CLUSTER_FILE}?",
            )
        if now > deadline:
            raise ClusterError(
                f"Job {probe.job_id} did not end within {wait_seconds:g} s and was cancelled.",
                "Give --wait more seconds.",
            )
        time.sleep(_LOOK_SECONDS)


def find_problems(place: ClusterPlace, kind: str, report: probes.ProbeReport) -> list[str]:
    """Return what of a node does not agree with the description, a sentence each."""
    problems = []
    gpu_type = next((one for one in place.gpu_types if one.name == kind), None)
    if gpu_type is not None and not report.gpus:
        problems.append(f"{report.host} shows no GPU to NVIDIA's driver, although the job had one.")
    if gpu_type is not None and report.gpus and report.gpus[0].memory_gib < gpu_type.memory_gib - 0.5:
        problems.append(
            f"{report.gpus[0].name} has {report.gpus[0].memory_gib:.1f} GiB; {CLUSTER_FILE} has {gpu_type.memory_gib:g}."
        )
    if report.versions.get("torch") is None:
        problems.append("PyTorch is not installed for the Python of the nodes.")
    if not place.offline and not report.has_internet:
        problems.append(f"The node cannot reach Hugging Face; set offline: true in {CLUSTER_FILE}.")
    return problems


def _words(job_id: str, report: probes.ProbeReport, problems: list[str]) -> str:
    gpus = ", ".join(f"{one.name} ({one.memory_gib:.1f} GiB)" for one in report.gpus) or "none"
    versions = ", ".join(f"{name} {version or 'missing'}" for name, version in report.versions.items())
    lines = [
        f"Job {job_id} ran on {report.host} and wrote into the shared home.",
        f"  GPU       {gpus}" + (f", CUDA_VISIBLE_DEVICES={report.visible}" if report.visible else ""),
        f"  node      {report.cores} cores for the job, {report.memory_gib:.1f} GiB RAM",
        f"  software  Python {report.python}, {versions}",
        f"  network   {'reaches Hugging Face' if report.has_internet else 'offline'}",
    ]
    return "\n".join([*lines, *(f"Problem: {problem}" for problem in problems)])


COMMANDS = (cluster,)
