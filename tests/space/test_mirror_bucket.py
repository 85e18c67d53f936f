"""A bucket belongs to one Space and one process of it, and one that is away or refuses loses nothing."""

import pytest

from loratory.engine.errors import HubUnreachableError, PushError
from loratory.engine.runs.store import RunStore
from loratory.engine.space import mirror_bucket
from loratory.engine.space.mirror import Mirror
from tests.space.mirrored import SPACE, a_run
from tests.waiting import PATIENCE_SECONDS, wait_until

AWAY = HubUnreachableError("The bucket cannot be reached.", "Wait.")


def test_another_space_is_refused_and_destroys_nothing(home, spaces, bucket):
    a_run(home)
    spaces.begin(home).save()
    before = dict(bucket.files)
    copy = spaces.disk()

    with pytest.raises(PushError, match="has the runs of the Space ann/lab, not of bea/copy"):
        spaces.begin(copy, "bea/copy")
    assert bucket.files == before


def test_a_process_that_was_replaced_stops_writing(home, spaces, bucket, monkeypatch):
    monkeypatch.setattr(mirror_bucket, "_LAG_SECONDS", (0.0,))
    monkeypatch.setattr(mirror_bucket, "_CHECK_SECONDS", 0.0)
    a_run(home)
    first = spaces.begin(home)
    first.save()
    spaces.again()
    before = dict(bucket.files)
    a_run(home, seed=3)

    with pytest.raises(PushError, match="Another process has begun to save"):
        first.save()
    assert bucket.files == before


def test_of_two_that_take_a_new_bucket_at_once_one_is_refused(spaces, bucket, monkeypatch):
    monkeypatch.setattr(mirror_bucket, "_LAG_SECONDS", (0.0,))
    first, second = spaces.disk(), spaces.disk()

    def second_comes(name):
        bucket.after_each = lambda _: None
        spaces.begin(second, "ann/other")

    bucket.after_each = second_comes
    with pytest.raises(PushError):
        spaces.begin(first)
    assert b"ann/lab" in bucket.files["mirror/space.json"] or b"ann/other" in bucket.files["mirror/space.json"]


def test_a_list_that_lags_behind_is_no_other_process(home, spaces, bucket, monkeypatch):
    monkeypatch.setattr(mirror_bucket, "_LAG_SECONDS", (0.0, 0.0, 0.0))
    run = a_run(home)
    spaces.begin(home).save()
    marker = bucket.files["mirror/space.json"]
    looks: list[bytes] = []

    def lag(kind):
        """Show the marker of the process before, at the first look after another one was put."""
        if kind == "list" and not looks and bucket.files["mirror/space.json"] != marker:
            looks.append(bucket.files["mirror/space.json"])
            bucket.files["mirror/space.json"] = marker
        elif kind == "list" and looks and looks[0]:
            bucket.files["mirror/space.json"], looks[0] = looks[0], b""

    bucket.refuse = lag
    assert RunStore(spaces.again(), "ann").ids() == [run.id]
    assert looks == [b""]


@pytest.mark.parametrize("kind", ["make", "list", "put", "get"])
def test_a_bucket_that_is_away_at_the_start_loses_nothing(home, spaces, bucket, kind):
    a_run(home)
    spaces.begin(home).save()
    before = {name: data for name, data in bucket.files.items() if name != "mirror/space.json"}

    def refuse(request):
        if request == kind:
            raise AWAY

    bucket.refuse = refuse
    again = spaces.disk()
    mirror = Mirror(again, bucket, SPACE)
    with pytest.raises(HubUnreachableError):
        mirror.restore(timeout_seconds=0)
    bucket.refuse = lambda _: None
    mirror.start()
    assert not mirror.stop(1)
    assert "cannot be reached" in mirror.unsaved("ann").text
    assert {name: data for name, data in bucket.files.items() if name != "mirror/space.json"} == before


def test_saving_continues_after_trouble_and_after_answers_that_were_lost(home, spaces, bucket):
    run = a_run(home)
    mirror = spaces.begin(home)
    mirror.start()
    bucket.lost = AWAY
    wait_until(lambda: f"home/runs/ann/{run.id}/config.yaml" in bucket.files)
    refusals = []

    def refuse(kind):
        refusals.append(kind)
        raise PushError("The account has no room.", "Add storage.")

    bucket.refuse = refuse
    other = a_run(home, seed=2)
    wait_until(lambda: len(refusals) > 1 and "no room" in mirror.unsaved("ann").text)
    assert mirror.unsaved("ann").runs
    bucket.refuse = lambda _: None
    wait_until(lambda: mirror.unsaved("ann").text == "")
    assert mirror.stop(PATIENCE_SECONDS)

    again = spaces.again()
    assert set(RunStore(again, "ann").ids()) == {run.id, other.id}
