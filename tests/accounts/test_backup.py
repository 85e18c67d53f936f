"""A lab comes back from its backup as it was, and nothing but a lab comes out of one."""

import contextlib
import io
import os
import stat
import tarfile

import pytest

from loratory.engine.accounts.accounts import Accounts, open_database
from loratory.engine.accounts.audit import AuditLog
from loratory.engine.accounts.backup import restore_backup, write_backup
from loratory.engine.accounts.lab import LabSettings, audit_log_path, read_settings, save_settings
from loratory.engine.accounts.limits import LabLimits
from loratory.engine.accounts.sessions import Sessions
from loratory.engine.cli import run_command
from loratory.engine.config.presets import find_preset, save_preset
from loratory.engine.errors import AccountError, EngineError
from loratory.engine.evaluation.prompt_sets import PromptSets
from loratory.engine.files import write_atomically
from loratory.engine.paths import LoratoryHome
from loratory.engine.runs.store import RunStore, list_owners
from tests.accounts.conftest import PASSWORD
from tests.invented_runs import InventedRun, a_config, write_run


@pytest.fixture
def lab(home, accounts, make_person):
    """Three people, one disabled, with two runs, settings and a log."""
    make_person("root", "admin")
    make_person("ann")
    make_person("bea", "guest")
    accounts.disable("bea")
    for owner in ("ann", "bea"):
        run = write_run(RunStore(home, owner), a_config(), InventedRun(state="completed"))
        run.folder.shared_mark.touch()
        (run.folder.path / "checkpoints" / "step-40").mkdir(parents=True)
        (run.folder.path / "checkpoints" / "step-40" / "MANIFEST.json").write_text("{}")
    save_settings(home, LabSettings(public_url="https://gpu.lab.example", limits=LabLimits(running_per_person=7)))
    AuditLog(audit_log_path(home)).write("root", "invited", "", "member")
    write_atomically(home.for_person("ann").votes / "votes.jsonl", "{}\n", makes_folder=True)
    save_preset(home.for_person("ann"), "mine", "training:\n  max_steps: 9\n")
    PromptSets(home.for_person("ann")).save("colours", [("Why?", "")])
    return home


@pytest.fixture
def empty(tmp_path):
    return LoratoryHome(tmp_path / "another")


def files_of(home):
    """Every file of the runs with its content."""
    return {
        path.relative_to(home.root): path.read_bytes()
        for path in home.runs.rglob("*")
        if path.is_file() and path.name not in ("lock", "process.json")
    }


def test_people_passwords_runs_and_limits_are_the_same_after_a_restore(lab, empty, accounts, tmp_path, quick_passwords):
    write_backup(lab, tmp_path / "lab.tar", with_checkpoints=True)
    size = restore_backup(empty, tmp_path / "lab.tar")

    with contextlib.closing(open_database(empty)) as database:
        restored = Accounts(database, quick_passwords)
        assert restored.people() == accounts.people()
        assert restored.check_password("ann", PASSWORD) is not None
        assert restored.check_password("ann", "wrong " + PASSWORD) is None
        assert restored.check_password("bea", PASSWORD) is None, "still disabled"
    assert read_settings(empty) == read_settings(lab)
    assert read_settings(empty).limits.running_per_person == 7
    assert list(AuditLog(audit_log_path(empty)).entries()) == list(AuditLog(audit_log_path(lab)).entries())
    assert list_owners(empty) == list_owners(lab) == ["ann", "bea"]
    assert files_of(empty) == files_of(lab)
    assert (empty.for_person("ann").votes / "votes.jsonl").read_text() == "{}\n"
    assert find_preset("mine", empty.for_person("ann")).load().training.max_steps == 9
    assert PromptSets(empty.for_person("ann")).names() == ["colours"]
    (run,) = RunStore(empty, "ann").list()
    assert run.folder.read_state().state == "completed"
    assert run.folder.read_config() == a_config()
    assert run.folder.shared_mark.exists()
    assert (size.people, size.runs) == (3, 2)


def test_checkpoints_are_left_out_unless_wanted(lab, empty, tmp_path):
    write_backup(lab, tmp_path / "lab.tar", with_checkpoints=False)
    restore_backup(empty, tmp_path / "lab.tar")

    remaining = {path for path in files_of(lab) if "checkpoints" not in path.parts}
    assert len(remaining) < len(files_of(lab))
    assert set(files_of(empty)) == remaining


def test_ended_sessions_and_used_links_do_not_come_back(lab, empty, accounts, sessions, tmp_path, quick_passwords):
    token = sessions.begin(accounts.person("ann"), "10.0.0.1", "test")
    invitation = accounts.invite("admin", by="root")
    write_backup(lab, tmp_path / "lab.tar", with_checkpoints=False)
    restore_backup(empty, tmp_path / "lab.tar")

    with contextlib.closing(open_database(empty)) as database:
        assert Sessions(database).find(token) is None
        with pytest.raises(EngineError, match="not valid"):
            Accounts(database, quick_passwords).find_invitation(invitation.token)


def test_all_that_is_written_is_for_the_user_alone(lab, empty, tmp_path):
    before = os.umask(0)
    try:
        write_backup(lab, tmp_path / "lab.tar", with_checkpoints=True)
        restore_backup(empty, tmp_path / "lab.tar")
    finally:
        os.umask(before)

    assert stat.S_IMODE((tmp_path / "lab.tar").stat().st_mode) == 0o600
    for path in (empty.root, *empty.root.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_a_link_in_a_run_is_not_followed(lab, empty, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("of another user")
    (run,) = RunStore(lab, "ann").list()
    (run.folder.path / "adapter.json").symlink_to(secret)
    (run.folder.path / "logs").symlink_to(tmp_path)
    write_backup(lab, tmp_path / "lab.tar", with_checkpoints=True)

    assert b"of another user" not in (tmp_path / "lab.tar").read_bytes()


def test_a_home_that_is_not_empty_is_left_alone(lab, empty, tmp_path):
    write_backup(lab, tmp_path / "lab.tar", with_checkpoints=False)
    empty.root.mkdir()
    (empty.root / "mine").write_text("mine")

    with pytest.raises(EngineError, match="not empty"):
        restore_backup(empty, tmp_path / "lab.tar")
    assert [path.name for path in empty.root.iterdir()] == ["mine"]


def forge(path, *members):
    """Write a tar with the first member of a backup, and others."""
    with tarfile.open(path, "w") as tar:
        for name, kind, content in (("loratory-backup", tarfile.REGTYPE, b"1"), *members):
            member = tarfile.TarInfo(name)
            member.type, member.size = kind, len(content) if kind == tarfile.REGTYPE else 0
            member.linkname = content.decode() if kind != tarfile.REGTYPE else ""
            member.mode = 0o4777
            tar.addfile(member, io.BytesIO(content))


@pytest.mark.parametrize(
    "members",
    [
        [("../outside", tarfile.REGTYPE, b"x")],
        [("runs/../../outside", tarfile.REGTYPE, b"x")],
        [("runs/ann/./../../../outside", tarfile.REGTYPE, b"x")],
        [("/outside", tarfile.REGTYPE, b"x")],
        [("runs//outside", tarfile.REGTYPE, b"x")],
        [(".ssh/authorized_keys", tarfile.REGTYPE, b"x")],
        [("runs/ann", tarfile.SYMTYPE, b"../.."), ("runs/ann/outside", tarfile.REGTYPE, b"x")],
        [("lab.yaml", tarfile.LNKTYPE, b"/etc/passwd")],
        [("runs/fifo", tarfile.FIFOTYPE, b"")],
        [("lab.yaml", tarfile.REGTYPE, b"a: 1"), ("lab.yaml", tarfile.REGTYPE, b"a: 2")],
        [("accounts.sqlite3", tarfile.REGTYPE, b"not a database")],
        [("lab.yaml", tarfile.REGTYPE, b"{}")],  # without accounts
        [(f"runs/{'n' * 300}", tarfile.REGTYPE, b"x")],  # too long for a disk
        [("runs/" + "/".join(["n" * 200] * 30), tarfile.REGTYPE, b"x")],
    ],
)
def test_an_archive_that_is_not_a_lab_leaves_the_home_empty(empty, tmp_path, members):
    forge(tmp_path / "forged.tar", *members)

    with pytest.raises(EngineError):
        restore_backup(empty, tmp_path / "forged.tar")
    assert list(empty.root.iterdir()) == []
    assert not list(tmp_path.rglob("outside"))


@pytest.mark.parametrize("name", ["n" * 300, "/".join(["n" * 200] * 30)])
def test_a_name_too_long_for_the_disk_is_reported_as_that(empty, tmp_path, name):
    forge(tmp_path / "forged.tar", (f"runs/{name}", tarfile.REGTYPE, b"x"))

    with pytest.raises(AccountError) as error_info:
        restore_backup(empty, tmp_path / "forged.tar")
    name_in_message = f"{'n' * 39}…"
    assert (
        str(error_info.value)
        == f"The backup holds {name_in_message!r}, a name too long for this disk. Give another backup."
    )
    assert list(empty.root.iterdir()) == []


def test_a_damaged_backup_leaves_the_home_empty(lab, empty, tmp_path):
    write_backup(lab, tmp_path / "lab.tar", with_checkpoints=True)
    whole = (tmp_path / "lab.tar").read_bytes()
    for content in (b"", b"no tar", whole[: len(whole) // 2], whole[:700]):
        (tmp_path / "half.tar").write_bytes(content)
        with pytest.raises(EngineError):
            restore_backup(empty, tmp_path / "half.tar")
        assert list(empty.root.iterdir()) == []


def test_a_home_without_accounts_does_not_become_a_lab(home, tmp_path):
    with pytest.raises(EngineError, match="no accounts"):
        write_backup(home, tmp_path / "lab.tar", with_checkpoints=False)
    assert list(home.root.iterdir()) == []
    assert not (tmp_path / "lab.tar").exists()


def test_the_commands_save_and_restore(lab, empty, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LORATORY_HOME", str(lab.root))
    assert run_command(["lab", "backup", str(tmp_path / "lab.tar")]) == 0
    assert run_command(["lab", "backup", str(tmp_path / "lab.tar")]) == 1, "it exists"
    monkeypatch.setenv("LORATORY_HOME", str(empty.root))
    assert run_command(["lab", "restore", str(tmp_path / "lab.tar")]) == 0
    assert "3 people, 2 runs" in capsys.readouterr().out
    assert [entry.kind for entry in AuditLog(audit_log_path(lab)).entries()][-1] == "backed up"
    assert [entry.kind for entry in AuditLog(audit_log_path(empty)).entries()][-1] == "restored"
