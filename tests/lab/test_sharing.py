"""Runs of another person of a lab are there for those who may see them, and for no one else."""

import pytest

from loratory.engine.accounts.audit import AuditLog
from loratory.engine.accounts.people import RUN_ACTIONS, Action, Person, RunAccess, may
from loratory.engine.errors import AccountError, RunError, StorageError
from loratory.engine.lab.rules import LabRuns, access_of, is_shared, set_shared
from loratory.engine.paths import LoratoryHome
from loratory.engine.runs.store import RunStore
from tests.invented_runs import InventedRun, a_config, write_run

ANN, BEA, ROOT, GUEST = (
    Person(name, role, created=0.0)
    for name, role in (("ann", "member"), ("bea", "member"), ("root", "admin"), ("gil", "guest"))
)


@pytest.fixture
def home(tmp_path):
    return LoratoryHome(tmp_path)


@pytest.fixture
def audit(tmp_path):
    return AuditLog(tmp_path / "audit.jsonl")


@pytest.fixture
def run(home):
    return write_run(RunStore(home, "ann"), a_config(), InventedRun())


def seen_by(person, home, audit):
    return LabRuns(home, person, audit)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("person", [ANN, BEA, ROOT, GUEST], ids=lambda person: person.role + person.name)
def test_what_may_says_is_what_can_be_opened(home, audit, run, person, shared):
    set_shared(run, ANN, shared, audit)
    for action in RUN_ACTIONS:
        lab = seen_by(person, home, audit)
        if may(person, action, RunAccess("ann", shared)):
            assert lab.open(f"ann/{run.id}", action).id == run.id
        else:
            with pytest.raises(RunError, match="not shared with you"):
                lab.open(f"ann/{run.id}", action)


def test_a_run_that_is_not_there_is_refused_as_a_private_one_is(home, audit, run):
    lab, denials = seen_by(BEA, home, audit), set()
    for name in (
        f"ann/{run.id}", f"ann/{run.id[:-4]}0000", f"cid/{run.id}", f"../runs/ann/{run.id}", f"ann/{run.id[-4:]}", f"ann/../ann/{run.id}",
        f"ann/{run.id}/", f"./{run.id}", run.id, "", "/", "ann/", f"/{home.runs}/ann/{run.id}", f"ann/{run.id}\0", f"bea/../ann/{run.id}",
    ):  # fmt: skip
        with pytest.raises(RunError) as error_info:
            lab.open(name, Action.READ)
        denials.add(str(error_info.value))
    assert len(denials) == 1


def test_only_the_owner_or_an_admin_shares(home, audit, run):
    for person in (BEA, GUEST):
        with pytest.raises(AccountError):
            set_shared(run, person, True, audit)
    own = write_run(RunStore(home, "gil"), a_config(), InventedRun())
    with pytest.raises(AccountError):
        set_shared(own, GUEST, True, audit)
    assert not is_shared(run.folder)

    set_shared(run, ANN, True, audit)
    assert access_of(run).is_shared
    assert [result.id for result in seen_by(BEA, home, audit).others()] == [run.id]
    assert seen_by(GUEST, home, audit).others() == []
    set_shared(run, ANN, False, audit)
    assert seen_by(BEA, home, audit).others() == []
    kinds = [(entry.person, entry.kind, entry.detail) for entry in audit.entries()]
    assert kinds == [("ann", "run shared", "shared"), ("ann", "run shared", "no longer shared")]


def test_an_admins_look_is_in_the_audit_log_before_it_happens(home, audit, run, tmp_path):
    seen_by(ROOT, home, audit).open(f"ann/{run.id}", Action.READ)
    (entry,) = audit.entries()
    assert (entry.person, entry.kind, entry.subject) == ("root", "looked into", f"ann/{run.id}")

    set_shared(run, ANN, True, audit)
    before = len(list(audit.entries()))
    seen_by(ROOT, home, audit).open(f"ann/{run.id}", Action.READ)
    assert len(list(audit.entries())) == before, "what is shared with all is no look into another's affairs"

    set_shared(run, ANN, False, audit)
    full = AuditLog(tmp_path / "no-such-folder" / "audit.jsonl")
    with pytest.raises(StorageError):
        seen_by(ROOT, home, full).open(f"ann/{run.id}", Action.READ)
