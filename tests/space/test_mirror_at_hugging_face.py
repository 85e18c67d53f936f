"""The mirror and the real client of Hugging Face's buckets, against a strict stand-in that answers, refuses, or is away."""

import contextlib

import pytest
from argon2 import PasswordHasher
from huggingface_hub import HfApi

from loratory.engine.accounts.accounts import Accounts, open_database
from loratory.engine.accounts.passwords import Passwords
from loratory.engine.accounts.sessions import Sessions
from loratory.engine.errors import EngineError, HubUnreachableError, PushError
from loratory.engine.hub import MIRROR, RunBucket
from loratory.engine.runs.store import RunStore
from loratory.engine.space import mirror_bucket
from tests.accounts.conftest import PASSWORD
from tests.hub.server import TOKEN, Fault
from tests.jobs.conftest import hugging_face  # noqa: F401 - a fixture
from tests.space.mirrored import Spaces, a_checkpoint, a_run, files_of
from tests.waiting import PATIENCE_SECONDS, wait_until

BUCKET = "ada/mirror"
SESSION = "a browser that no other test has"


@pytest.fixture
def spaces(hugging_face, tmp_path):  # noqa: F811 - the fixture
    api = HfApi(endpoint=hugging_face.address, token=TOKEN)
    return Spaces(RunBucket(api, BUCKET, MIRROR.explain_errors), tmp_path)


def test_a_space_comes_back_from_a_private_bucket(spaces, home, hugging_face):  # noqa: F811
    passwords = Passwords(PasswordHasher(time_cost=1, memory_cost=8, parallelism=1))
    runs = [a_run(home, owner, seed=number) for number, owner in enumerate(["ann", "bea"])]
    a_checkpoint(runs[0], 300)
    with contextlib.closing(open_database(home)) as database:
        accounts = Accounts(database, passwords)
        person = accounts.accept(accounts.invite("admin", by="").token, "ann", PASSWORD)
        session = Sessions(database).begin(person, "1.2.3.4", SESSION)
        invitation = accounts.invite("member", by="ann").token
        mirror = spaces.begin(home)
        mirror.save()

    again = spaces.again()

    assert hugging_face.public == set()
    assert spaces.restored.runs == 2
    assert files_of(RunStore(again, "bea").get(runs[1].id))["config.yaml"] == files_of(runs[1])["config.yaml"]
    assert RunStore(again, "ann").get(runs[0].id).folder.newest_checkpoint_step() == 300
    contents = b"".join(hugging_face.files[BUCKET].values())
    for secret in (TOKEN, session, invitation, PASSWORD, SESSION):
        assert secret.encode() not in contents
    for path in again.root.rglob("*"):
        assert not path.is_file() or TOKEN.encode() not in path.read_bytes(), path
    assert not any(name.endswith(("lock", "process.json")) for name in hugging_face.files[BUCKET])


REFUSALS = [
    (403, PushError, "does not let the token of this Space write to the bucket ada/mirror"),
    (503, HubUnreachableError, "out of order"),
    ("lost", HubUnreachableError, "cannot be reached"),
]


@pytest.mark.parametrize(("what", "error", "message"), REFUSALS)
def test_trouble_while_saving_is_reported_and_mended_later(spaces, home, hugging_face, what, error, message):  # noqa: F811
    mirror = spaces.begin(home)
    mirror.save()
    run = a_run(home)
    hugging_face.faults = [Fault("batch", what, times=20)]
    with pytest.raises(error) as error_info:
        mirror.save()
    assert message in error_info.value.what
    assert error_info.value.fix
    assert TOKEN not in str(error_info.value)
    assert error_info.value.__cause__ is None

    hugging_face.faults = []
    mirror.save()
    assert RunStore(spaces.again(), "ann").ids() == [run.id]


@pytest.mark.exhaustive(quick=3)
@pytest.mark.parametrize("step", ["make", "tree", "batch", "about", "storage"])
@pytest.mark.parametrize("what", [403, "reset"])
def test_trouble_at_the_start_takes_nothing_from_the_bucket(spaces, home, hugging_face, step, what):  # noqa: F811
    run = a_run(home)
    spaces.begin(home).save()
    before = dict(hugging_face.files[BUCKET])
    disk = spaces.disk()
    hugging_face.faults = [Fault(step, what, times=50)]
    with pytest.raises(EngineError) as error_info:
        spaces.begin(disk)
    assert TOKEN not in str(error_info.value)

    hugging_face.faults = []
    there = hugging_face.files[BUCKET]
    assert {name: there[name] for name in before if name != "mirror/space.json"}.items() <= before.items()
    spaces.begin(disk)
    assert RunStore(disk, "ann").ids() == [run.id]


def test_saving_in_its_thread_rides_out_what_comes(spaces, home, hugging_face, monkeypatch):  # noqa: F811
    monkeypatch.setattr(mirror_bucket, "_CHECK_SECONDS", 0.0)
    mirror = spaces.begin(home)
    mirror.start()
    hugging_face.faults = [
        Fault("batch", "lost"), Fault("storage", "reset"), Fault("batch", 503, 8), Fault("tree", 429, 8), Fault("batch", 403),
    ]  # fmt: skip
    run = a_run(home, steps=300)
    a_checkpoint(run, 400)
    wait_until(lambda: not any(fault.times for fault in hugging_face.faults) and not mirror.unsaved("ann").text)
    RunStore(home, "ann").delete(a_run(home, seed=9).id)
    assert mirror.stop(PATIENCE_SECONDS)

    back = RunStore(spaces.again(), "ann").list()
    assert [files_of(later_run)["events.jsonl"] for later_run in back] == [files_of(run)["events.jsonl"]]
    assert back[0].folder.newest_checkpoint_step() == 400


def test_a_public_bucket_gets_nothing(spaces, home, hugging_face):  # noqa: F811
    hugging_face.files[BUCKET] = {}
    hugging_face.public.add(BUCKET)
    a_run(home)

    with pytest.raises(PushError, match="is public"):
        spaces.begin(home)
    assert hugging_face.files[BUCKET] == {}
