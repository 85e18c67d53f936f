"""What tests of a lab's admin share: the audit log in short, and runs that wait."""

from loratory.engine.lab.supervision import SNAPSHOT_FILE, QueuedRun, QueueSnapshot
from loratory.engine.runs.store import RunStore
from tests.invented_runs import InventedRun, a_config, write_run

MONDAY = 1_789_984_800.0  # 2026-09-21 10:00 UTC


def audit_entries(admin):
    return [(entry.person, entry.kind, entry.subject, entry.detail, entry.address) for entry in admin.audit.entries()]


def waiting_runs(admin, *owners):
    """Queued runs, one of each owner, and the queue as its supervisor has published it."""
    runs = [write_run(RunStore(admin.home, owner), a_config(), InventedRun(state="queued")) for owner in owners]
    places = tuple(QueuedRun(owner=run.owner, run_id=run.id, reason="other_persons_run") for run in runs)
    admin.home.server.mkdir(exist_ok=True)
    (admin.home.server / SNAPSHOT_FILE).write_text(QueueSnapshot(waiting=places).model_dump_json())
    return runs
