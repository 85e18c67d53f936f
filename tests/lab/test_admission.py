"""What a person of a lab may put into the queue, and onto the disk."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from loratory.engine.accounts.accounts import open_database
from loratory.engine.accounts.lab import LabSettings, RulesReader, read_settings, save_settings
from loratory.engine.accounts.limits import LabLimits, LabRules, Maintenance
from loratory.engine.errors import RunError, StorageError
from loratory.engine.lab.rules import admission, resume_run
from loratory.engine.runs.disk import QuotaWatch, disk_use, require_disk_space
from loratory.engine.runs.run import RunState
from loratory.engine.runs.store import RunStore
from tests.supervision.fake_runs import config_for


@pytest.fixture
def limited_home(home):
    """Make the home a lab with these limits."""
    open_database(home).close()

    def limit(**limits: object) -> None:
        save_settings(home, LabSettings(limits=LabLimits(**{"free_disk_gb": 0.0, **limits})))

    return limit


def test_a_start_beyond_the_places_in_the_queue_is_refused_with_the_values(home, store, limited_home):
    limited_home(waiting_per_person=2)
    for _ in range(2):
        with admission(home, "ann"):
            store.create(config_for())

    with (
        pytest.raises(
            RunError, match=r"You have 2 waiting runs, and 1 more is too many: the lab allows 2 per person\."
        ),
        admission(home, "ann"),
    ):
        pytest.fail("it was admitted")
    with admission(home, "bob"):
        pass


def test_starts_at_the_same_time_never_exceed_the_places(home, store, limited_home):
    limited_home(waiting_per_person=3)
    refusals = []

    def start() -> None:
        try:
            with admission(home, "ann"):
                store.create(config_for())
        except RunError as error:
            refusals.append(error)

    with ThreadPoolExecutor(8) as threads:
        for _ in range(8):
            threads.submit(start)

    assert len(store.list()) == 3
    assert len(refusals) == 5


def test_a_resumed_run_takes_a_place_as_well(home, store, limited_home):
    limited_home(waiting_per_person=1)
    runs = [store.create(config_for()) for _ in range(2)]
    for run in runs:
        run.folder.write_state(RunState(state="stopped", attempt=1))
    resume_run(home, runs[0])

    with pytest.raises(RunError, match="1 waiting runs"):
        resume_run(home, runs[1])


def test_disk_space_counts_runs_uploads_and_exports_and_refuses_with_the_values(home, store, limited_home):
    limited_home(disk_gb_per_person=0.001)
    run = store.create(config_for())
    (run.folder.path / "weights").write_bytes(bytes(400_000))
    for folder in (home.for_person("ann").uploads, home.for_person("ann").exports):
        folder.mkdir(parents=True)
        (folder / "file").write_bytes(bytes(200_000))
    use = disk_use(home, "ann")

    assert (use.parts["uploads"], use.parts["exports"]) == (200_000, 200_000)
    require_disk_space(home, "ann", 100_000)
    with pytest.raises(
        StorageError,
        match=r"You use 8\d\d kB of 1\.0 MB \(runs 4\d\d kB, uploads 200 kB, exports 200 kB\); 300 kB more",
    ):
        require_disk_space(home, "ann", 300_000)
    require_disk_space(home, "bob", 300_000)


def test_files_on_their_way_into_or_out_of_the_page_count(home, limited_home):
    limited_home(disk_gb_per_person=0.001)
    transfers = home.for_person("ann").transfers
    transfers.mkdir(parents=True)
    (transfers / "rows.jsonl").write_bytes(bytes(900_000))

    with pytest.raises(StorageError, match=r"You use 900 kB of 1\.0 MB \(transfers 900 kB\); 200 kB more"):
        require_disk_space(home, "ann", 200_000)


def test_a_disk_limit_is_measured_again_where_room_is_short(home, limited_home):
    limited_home(disk_gb_per_person=0.001)
    watch, uploads = QuotaWatch(home, "ann"), home.for_person("ann").uploads
    assert watch.room(0).bytes == 1_000_000
    uploads.mkdir(parents=True)
    (uploads / "rows").write_bytes(bytes(700_000))
    watch.count(100_000)

    assert watch.room(950_000).bytes == 300_000
    (home.root / "lab.yaml").write_text("limits: [")
    assert watch.room(500_000).bytes == 300_000  # what was last known holds
    limited_home(disk_gb_per_person=None)
    assert watch.room(500_000) is None


def test_the_floor_of_free_space_is_kept(home, limited_home):
    limited_home(free_disk_gb=1_000_000)

    with pytest.raises(StorageError, match="the lab keeps 1e"):
        require_disk_space(home, "ann")


def test_a_home_without_accounts_has_no_limits(home):
    save_settings(home, LabSettings(limits=LabLimits(waiting_per_person=1, free_disk_gb=1_000_000)))
    store = RunStore(home, "ann")
    for _ in range(3):
        with admission(home, "ann"):
            store.create(config_for())
    require_disk_space(home, "ann", 10**18)

    assert RulesReader(home).read() is None


def test_limits_are_read_again_when_they_change_and_kept_when_the_file_is_damaged(home, limited_home):
    limited_home(waiting_per_person=7)
    reader = RulesReader(home)
    first = reader.read()
    assert first is not None
    assert first.limits.waiting_per_person == 7

    limited_home(waiting_per_person=12)
    second = reader.read()
    assert second is not None
    assert second.limits.waiting_per_person == 12
    (home.root / "lab.yaml").write_text("limits: {waiting_per_person: -3}")
    assert reader.read() == second


def test_a_lab_whose_file_was_always_damaged_has_the_default_limits(home, limited_home):
    limited_home()
    (home.root / "lab.yaml").write_text("{")

    assert RulesReader(home).read() == LabRules()


def test_settings_come_back_as_they_were_saved(home):
    settings = LabSettings(
        limits=LabLimits(device_weights={"cuda:0": 2.5}, weekly_gpu_hours=40),
        maintenance=Maintenance(is_on=True, text="Driver update."),
    )
    save_settings(home, settings)

    assert read_settings(home) == settings
