"""What is saved of a job with its run: its costs, what is wished for the next one, and its pieces of the log."""

import pytest

from loratory.engine.errors import ConfigError, RunError
from loratory.engine.places.huggingface_jobs.layout import JobRecord, JobRequest, write_piece
from loratory.engine.runs.provenance import Provenance
from loratory.engine.runs.store import RunStore
from tests.invented_runs import InventedRun, a_config, write_run


@pytest.fixture
def folder(home):
    config = a_config(run__where="jobs", jobs__flavor="l4x1", jobs__limit_hours=2)
    run_folder = RunStore(home, "local").create(config, Provenance()).folder
    JobRecord(attempt=1, namespace="", flavor="l4x1", limit_hours=2).save(run_folder)
    return run_folder


def test_a_piece_of_the_log_is_written_once(tmp_path):
    log = tmp_path / "events"
    assert not write_piece(log, 5, b"late\n")
    assert write_piece(log, 0, b"zero\n")
    assert write_piece(log, 5, b"five\n")
    assert write_piece(log, 0, b"zero\n")
    log.write_bytes(b"zero\nfi")  # the power went in the middle
    assert write_piece(log, 5, b"five\n")
    assert log.read_bytes() == b"zero\nfive\n"


def test_a_wish_is_for_the_next_attempt(folder):
    assert JobRequest.read(folder) == JobRequest()
    JobRequest.with_changes(folder, "a100-large", None).save(folder)
    JobRequest.with_changes(folder, "", 5).save(folder)
    assert JobRequest.read(folder) == JobRequest(flavor="a100-large", limit_hours=5)


@pytest.mark.parametrize(
    ("flavor", "hours"), [("A100 large", None), ("l4x1; rm", None), ("", 0), ("", 900), ("", "soon")]
)
def test_a_wish_that_no_configuration_could_have_is_refused(folder, flavor, hours):
    with pytest.raises(ConfigError):
        JobRequest.with_changes(folder, flavor, hours)


def test_a_run_of_this_machine_has_no_wish(home):
    run = write_run(RunStore(home, "local"), a_config(), InventedRun(state="stopped"))
    with pytest.raises(RunError, match="no job at Hugging Face"):
        JobRequest.with_changes(run.folder, "l4x1", None)


def test_a_run_costs_what_all_its_jobs_cost_and_at_most_what_the_last_one_may_add():
    first = JobRecord(
        attempt=1,
        namespace="ada",
        flavor="l4x1",
        price_per_hour_usd=0.8,
        limit_hours=2,
        job_id="x",
        running_seconds=3600,
    )
    rejected = JobRecord(attempt=2, namespace="ada", flavor="l4x1", limit_hours=2, earlier_usd=first.cost_usd)
    second = JobRecord(
        attempt=3, namespace="ada", flavor="a100-large", price_per_hour_usd=2.5, limit_hours=2, job_id="y",
        running_seconds=1800, earlier_usd=rejected.cost_usd,
    )  # fmt: skip

    assert (first.cost_usd, first.most_usd) == pytest.approx((0.8, 1.6))
    assert (second.cost_usd, second.most_usd) == pytest.approx((2.05, 5.8))
    unknown = second.model_copy(update={"price_per_hour_usd": None})
    assert unknown.cost_usd is None
