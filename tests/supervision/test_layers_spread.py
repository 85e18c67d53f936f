"""A run whose layers are spread holds all of its GPUs from its start to its end."""

from loratory.engine.hardware.lease import LeaseBook
from loratory.engine.runs.provenance import Provenance
from tests.supervision.fake_runs import GIB, config_for, continue_worker, cpu, gpu, wait_for_state
from tests.waiting import wait_until

SPREAD = {"devices": [0, 1], "device_map": "balanced"}


def test_all_of_its_gpus_are_leased_while_it_trains_and_free_afterwards(home, store, start_supervisor):
    book = LeaseBook(home)
    run = store.create(config_for("steps=2 hold=1", run=SPREAD))
    start_supervisor(devices=lambda: (gpu(0), gpu(1), gpu(2), cpu()))

    wait_for_state(run, "running")
    assert [book.holder(name).run_id for name in ("cuda:0", "cuda:1")] == [run.id, run.id]
    assert book.holder("cuda:2") is None
    assert run.folder.read_state().device == "cuda:0, cuda:1"
    continue_worker(run)
    wait_for_state(run, "completed")
    assert [book.holder(name) for name in ("cuda:0", "cuda:1")] == [None, None]


def test_it_waits_until_each_gpu_has_room_for_the_fullest_part(home, store, start_supervisor):
    run = store.create(config_for("steps=2", run=SPREAD), Provenance(predicted_bytes=10 * GIB))
    start_supervisor(devices=lambda: (gpu(0, free_gib=20), gpu(1, free_gib=5), cpu()))

    wait_until(lambda: run.folder.read_state().reason == "memory")
    assert LeaseBook(home).holder("cuda:0") is None
