"""Slurm's reasons in plain words: why a job waits, and how it ended."""

from engine.executors.slurm.commands import JobLine
from engine.executors.slurm.record import SlurmRecord
from engine.runs.job import EndWord, JobEnd

WAITS_STATES = frozenset({"PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD"})
ENDED_STATES = frozenset(
    """
    BOOT_FAIL CANCELLED COMPLETED DEADLINE FAILED LAUNCH_FAILED NODE_FAIL OUT_OF_MEMORY PREEMPTED RECONFIG_FAIL REVOKED TIMEOUT
    """.split()
)

# By the beginning of Slurm's reason, the longest first. Source: squeue(1), "JOB REASON CODES".
_WAITS = {
    "Resources": "its node or GPUs are in use",
    "Priority": "jobs of higher priority come first",
    "None": "Slurm has not looked at it yet",
    "BeginTime": "it may begin later only",
    "JobHeldUser": "it is held",
    "JobHeldAdmin": "an admin of the cluster holds it",
    "ReqNodeNotAvail": "the nodes that it needs are down, drained or reserved",
    "Reservation": "its reservation has not begun",
    "Nodes required for job are DOWN": "the nodes that it needs are down, drained or reserved",
    "NodeDown": "the node that it needs is down",
    "PartitionDown": "its partition starts no jobs at present",
    "PartitionInactive": "its partition is inactive",
    "PartitionNodeLimit": "it asks for more nodes than its partition allows",
    "PartitionTimeLimit": "it asks for more time than its partition allows",
    "BadConstraints": "no node has what it asks for",
    "Constraints": "no node has what it asks for",
    "Licenses": "a license that it needs is in use",
    "QOSMaxJobs": "you have as many jobs running as your QoS allows",
    "QOSMaxGRES": "your running jobs use as many GPUs as your QoS allows",
    "QOSMax": "it is beyond a limit of your QoS",
    "QOSMin": "it asks for less than your QoS demands",
    "QOSGrp": "all jobs of this QoS together use as much as it allows",
    "QOSNotAllowed": "your account may not use this QoS",
    "QOSTimeLimit": "it asks for more time than your QoS allows",
    "QOSResourceLimit": "it is beyond a limit of your QoS",
    "AssocMaxJobs": "you have as many jobs running as your account allows",
    "AssocMaxGRES": "your running jobs use as many GPUs as your account allows",
    "AssocMax": "it is beyond a limit of your account",
    "AssocGrp": "all jobs of your account together use as much as it allows",
    "AssociationJobLimit": "your account has as many jobs as it may have",
    "AssociationResourceLimit": "it is beyond a limit of your account",
    "AssociationTimeLimit": "it asks for more time than your account allows",
    "MaxGRESPerAccount": "jobs of this account use as many GPUs as it may have",
    "MaxJobsPerAccount": "this account has as many jobs running as it may have",
    "MaxCpuPerAccount": "jobs of this account use as many cores as it may have",
    "MaxMemPerLimit": "it asks for more memory than the limit of its partition",
    "JobLaunchFailure": "it could not be started on its node; Slurm tries again",
    "SystemFailure": "Slurm itself, a file system or the network failed",
    "launch failed requeued held": "its start failed, and Slurm holds it",
}
_BY_LENGTH = sorted(_WAITS, key=len, reverse=True)

_NEVER = frozenset(
    """
    PartitionNodeLimit PartitionTimeLimit BadConstraints QOSNotAllowed InvalidAccount InvalidQOS MaxMemPerLimit QOSTimeLimit
    AssociationTimeLimit
    """.split()
)


def waits_words(line: JobLine) -> tuple[str, str]:
    """Return why a job waits, such as `Waiting at Slurm: Resources, job 1234 (…).`, and what to do where only that helps."""
    reason = line.reason.strip("()") or "None"
    prefix = next((name for name in _BY_LENGTH if reason.startswith(name)), None)
    name = reason.partition(",")[0]
    words = f"Waiting at Slurm: {name}, job {line.id}"
    words = f"{words} ({_WAITS[prefix]})." if prefix is not None else f"{words}."
    return words, "Cancel it, correct cluster.yaml or the run's settings, and start again." if name in _NEVER else ""


_ENDS: dict[str, tuple[EndWord, str]] = {
    "OUT_OF_MEMORY": (
        "out_of_memory",
        "Slurm ended job {id}{where}: it used more than the {memory:g} GiB of RAM that it had.",
    ),
    "TIMEOUT": ("time_limit", "Job {id}{where} reached its time limit at Slurm ({limit})."),
    "DEADLINE": ("time_limit", "Job {id}{where} reached its deadline at Slurm."),
    "NODE_FAIL": ("node_failed", "The node of job {id} failed{where}."),
    "BOOT_FAIL": ("node_failed", "The node of job {id} failed to boot{where}."),
    "PREEMPTED": ("preempted", "Slurm preempted job {id}{where} for a job of higher priority."),
    "CANCELLED": ("cancelled", "Job {id}{where} was cancelled at Slurm (scancel)."),
    "REVOKED": ("cancelled", "Job {id}{where} was revoked at Slurm."),
}


def job_end(record: SlurmRecord) -> JobEnd:
    """Return how a job ended, from what Slurm's queue showed last."""
    state = "TIMEOUT" if record.near_limit and record.end_state == "COMPLETED" else record.end_state
    if not state and record.job_id:
        return JobEnd(cause=f"Slurm no longer knows job {record.job_id}, and its worker gives no sign of life.")
    if state not in _ENDS:
        return JobEnd(record.exit_code)
    word, words = _ENDS[state]
    minutes = record.resources.limit_minutes
    limit = f"{minutes / 60:g} h" if minutes >= 60 else f"{minutes:g} min"
    where = f" on {record.nodes}" if record.nodes else ""
    cause = words.format(id=record.job_id, where=where, memory=record.resources.memory_gib, limit=limit)
    return JobEnd(record.exit_code, word=word, cause=cause)
