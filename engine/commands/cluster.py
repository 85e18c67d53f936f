"""`loratory cluster`: describe a Slurm cluster that shares the home, and check that runs can train there."""

from typing import Annotated

import typer

from engine.commands.output import AsJson, print_result
from engine.errors import ClusterError
from engine.executors.slurm.commands import Slurm
from engine.executors.slurm.discovery import (
    ProbeReport,
    differences,
    list_groups,
    probe_node,
    propose,
    to_yaml,
    unknown_types,
    write_place,
)
from engine.executors.slurm.place import CLUSTER_FILE, ClusterPlace, has_place, read_place
from engine.paths import LoratoryHome

cluster = typer.Typer(name="cluster", help="A Slurm cluster: describe it, check it.", no_args_is_help=True)


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
    typer.echo(f"Asking Slurm for a node with {f'1×{kind}' if names else 'CPU'}.", err=True)
    report = probe_node(home, place, kind, wait)
    problems = find_problems(place, kind, report)
    print_result({**report.model_dump(mode="json"), "problems": problems}, _words(report, problems), as_json=as_json)
    if problems:
        raise typer.Exit(1)


def find_problems(place: ClusterPlace, kind: str, report: ProbeReport) -> list[str]:
    """Return what of a node does not agree with the description, a sentence each."""
    problems = []
    gpu_type = next((one for one in place.gpu_types if one.name == kind), None)
    if gpu_type is not None and not report.gpus:
        problems.append(f"{report.host} shows no GPU to NVIDIA's driver, although the job had one.")
    if gpu_type is not None and report.gpus and report.gpus[0].memory_gib < gpu_type.memory_gib - 0.5:
        problems.append(
            f"{report.gpus[0].name} has {report.gpus[0].memory_gib:.1f} GiB; {CLUSTER_FILE} has {gpu_type.memory_gib:g}."
        )
    if not report.has_home:
        problems.append(f"{report.host} cannot write to LORATORY_HOME, which nodes and this machine share.")
    if report.versions.get("torch") is None:
        problems.append("PyTorch is not installed for the Python of the nodes.")
    if not place.offline and not report.has_internet:
        problems.append(f"The node cannot reach Hugging Face; set offline: true in {CLUSTER_FILE}.")
    return problems


def _words(report: ProbeReport, problems: list[str]) -> str:
    gpus = ", ".join(f"{one.name} ({one.memory_gib:.1f} GiB)" for one in report.gpus) or "none"
    versions = ", ".join(f"{name} {version or 'missing'}" for name, version in report.versions.items())
    lines = [
        f"Job {report.job} ran on {report.host}.",
        f"  GPU       {gpus}" + (f", CUDA_VISIBLE_DEVICES={report.visible}" if report.visible else ""),
        f"  node      {report.cores} cores for the job, {report.memory_gib:.1f} GiB RAM",
        f"  software  Python {report.python}, {versions}",
        f"  network   {'reaches Hugging Face' if report.has_internet else 'offline'}",
    ]
    return "\n".join([*lines, *(f"Problem: {problem}" for problem in problems)])


COMMANDS = (cluster,)
