"""Runs on a machine by SSH, through a real sshd: they train as here, and survive what happens to links and machines."""

import contextlib

import psutil
import pytest

from loratory.engine.config.load import config_from_mapping
from loratory.engine.interface.workspace import Run
from loratory.engine.lab.rules import resume_run
from loratory.engine.places import make_executors
from loratory.engine.places.huggingface_jobs.layout import segment_offset, write_piece
from loratory.engine.places.ssh.job import SshExecutor, _Files
from loratory.engine.places.ssh.machine import MachineError, MachineUnreachableError, add_machine, read_machines
from loratory.engine.runs.control import request_cancel, request_stop, request_target
from loratory.engine.runs.history.run_history import read_history
from loratory.engine.runs.store import RunStore
from loratory.engine.supervision.scheduler import SupervisorSettings
from loratory.engine.supervision.supervisor import Supervisor
from tests.waiting import wait_until

pytestmark = pytest.mark.e2e


@pytest.fixture
def store(home):
    return RunStore(home, "ann")


@pytest.fixture
def supervisor(home, box, monkeypatch):
    """Start a supervisor here, which reaches the machine with the client's key of the test, and looks often."""
    monkeypatch.setattr("loratory.engine.places.ssh.job._POLL_SECONDS", 1.0)

    def executors(context):
        return {**make_executors(context), "ssh": SshExecutor(home, box.connect)}

    supervisor = Supervisor(home, SupervisorSettings(executors=executors, tick_seconds=0.1))
    supervisor.start()
    yield supervisor
    supervisor.stop()


def config_of(model, data, steps=6, where="ssh", **training):
    values = {
        "model": {"id": str(model)},
        "dataset": {"source": str(data), "eval_fraction": 0.2},
        "training": {
            "max_steps": steps,
            "max_length": 64,
            "save_steps": 2,
            "eval_steps": 2,
            "logging_steps": 1,
            **training,
        },
        "run": {"where": where, "devices": "cpu"},
        "ssh": {"machine": "box"},
    }
    return config_from_mapping(values)


@pytest.fixture
def data(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(
        "".join(f'{{"prompt": "Is {n} even?", "completion": "{"yes" if n % 2 == 0 else "no"}"}}\n' for n in range(40))
    )
    return file


def until(run, *states):
    wait_until(lambda: run.folder.read_state().state in states)
    return run.folder.read_state()


def _arguments():
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            yield " ".join(process.cmdline())


def losses(run):
    return list(read_history(run.folder.events).steps.losses)


def test_a_run_there_has_the_losses_of_one_here_and_leaves_nothing_behind(
    store, home, box, supervisor, tiny_model_folder, data, monkeypatch
):
    token = "hf_ThisIsASecretOfThisComputer1234"
    monkeypatch.setenv("HF_TOKEN", token)
    argv = set[str]()
    here = store.create(config_of(tiny_model_folder, data, where="local"))
    until(here, "completed")

    there = store.create(config_of(tiny_model_folder, data))
    wait_until(lambda: argv.update(_arguments()) or there.folder.read_state().is_final)
    state = there.folder.read_state()

    assert (state.state, state.device) == ("completed", "box"), state
    assert losses(there) == losses(here)
    adapters = [(run.folder.adapter / "adapter_model.safetensors").read_bytes() for run in (here, there)]
    assert adapters[0] == adapters[1]
    assert [checkpoint.name for checkpoint in there.folder.checkpoints.iterdir()]
    assert not list(box.loratory.runs.glob("*/*"))
    assert not list((box.loratory.root / "ssh-inputs").iterdir())
    files = [path for path in (*box.home.rglob("*"), *there.folder.path.rglob("*")) if path.is_file()]
    for secret in (token, (box.root / "key").read_text().splitlines()[1]):
        assert not [path for path in files if secret.encode() in path.read_bytes()]
        assert not [line for line in argv if secret in line]
    assert any("ssh" in line for line in argv)


def test_a_stop_saves_there_and_the_run_is_resumed_here(store, home, box, supervisor, tiny_model_folder, data):
    whole = store.create(config_of(tiny_model_folder, data, steps=40, where="local"))
    until(whole, "completed")
    run = store.create(config_of(tiny_model_folder, data, steps=40))
    wait_until(lambda: read_history(run.folder.events).last_step >= 3)

    request_stop(run)
    state = until(run, "stopped", "completed", "failed")
    assert state.state in ("stopped", "completed"), state
    if state.state == "stopped":
        request_target(run, "local")
        resume_run(home, run)
        assert until(run, "completed", "failed").state == "completed"
    assert losses(run) == losses(whole)


def test_a_cancel_ends_it_there(store, box, supervisor, tiny_model_folder, data):
    run = store.create(config_of(tiny_model_folder, data, steps=100_000, save_steps=50, eval_steps=100_000))
    wait_until(lambda: read_history(run.folder.events).last_step >= 1)

    request_cancel(run)

    assert until(run, "interrupted", "stopped").state in ("interrupted", "stopped")
    wait_until(lambda: not list(box.loratory.runs.glob("*/*")))


def test_a_link_that_is_cut_delays_what_arrives_and_loses_nothing(
    store, own_namespace, box, supervisor, tiny_model_folder, data
):
    run = store.create(config_of(tiny_model_folder, data, steps=30))
    wait_until(lambda: read_history(run.folder.events).last_step >= 1)

    box.cut()
    state = until(run, "running", "starting")
    wait_until(lambda: run.folder.read_state().reason == "executor_unreachable")
    assert "does not answer at present" in run.folder.read_state().cause
    box.plug()

    assert until(run, "completed", "failed", "interrupted").state == "completed", state
    assert len(losses(run)) == 30


def test_a_machine_that_restarts_gets_its_run_again(store, own_namespace, box, supervisor, tiny_model_folder, data):
    run = store.create(config_of(tiny_model_folder, data, steps=200, save_steps=20, eval_steps=200))
    wait_until(lambda: bool(list(run.folder.checkpoints.glob("step-*/MANIFEST.json"))))

    box.reboot()

    state = until(run, "completed", "failed")
    assert (state.state, state.attempt) == ("completed", 2), state
    assert read_history(run.folder.events).resumes
    assert len(losses(run)) == 200


def test_a_crash_of_the_worker_there_is_an_interruption_here(store, home, box, supervisor, tiny_model_folder, data):
    run = store.create(config_of(tiny_model_folder, data, steps=100_000, save_steps=50, eval_steps=100_000))
    wait_until(lambda: bool(list(run.folder.checkpoints.glob("step-*/MANIFEST.json"))))

    assert box.kill_everything()

    state = until(run, "interrupted", "failed")
    assert state.resumable_step
    assert "box" in state.cause


def test_keys_and_names_that_are_wrong_are_refused(
    store, own_namespace, home, box, supervisor, tiny_model_folder, data
):
    entry = read_machines(home)["box"]
    with contextlib.closing(box.connect("box", entry)) as connection:
        assert connection.call("devices")[0]["kind"] == "cpu"

    with pytest.raises(MachineError, match="does not accept your keys"):
        box.connect("box", entry, key="other-key").call("devices")
    box.know("other-host")
    with pytest.raises(MachineError, match="host key of box is not known, or has changed; nothing was sent"):
        box.connect("box", entry).call("devices")
    run = store.create(config_of(tiny_model_folder, data))
    state = until(run, "failed", "interrupted")
    assert "host key of box" in state.cause
    box.know("host")
    box.cut()
    with pytest.raises(MachineUnreachableError, match="does not answer at present"):
        box.connect("box", entry).call("devices")
    for destination in ("-oProxyCommand=touch /tmp/x", "a b", "a;b", "$(id)@x", "x\ny", "", "@", "a@-b"):
        with pytest.raises(Exception, match="is not a machine's address"):
            add_machine(home, "bad", entry.model_copy(update={"destination": destination}))
    for name in ("", "../x", "A", "x" * 41):
        with pytest.raises(Exception, match="cannot be the name of a machine"):
            add_machine(home, name, entry)


def test_a_full_disk_there_is_said_and_loses_nothing_here(
    store, own_namespace, box, supervisor, tiny_model_folder, data
):
    box.stop()
    box.start(disk_kib=64)
    try:
        run = store.create(config_of(tiny_model_folder, data))
        state = until(run, "failed", "interrupted")
    finally:
        box.stop()
        box.start()
    assert "No space left on device" in state.cause
    assert Run(store.home, run).config.ssh.machine == "box"


def test_a_long_log_arrives_in_pieces(store, home, box, tiny_model_folder, data):
    """As after a day without a connection: more than one answer may hold."""
    run = store.create(config_of(tiny_model_folder, data))
    log = b"".join(b'{"line": %d}\n' % number for number in range(700_000))
    there = RunStore(box.loratory, box.user).folder / run.id
    there.mkdir(parents=True)
    (there / "events.jsonl").write_bytes(log)
    with contextlib.closing(box.connect("box", read_machines(home)["box"])) as connection:
        pieces = 0
        while (run.folder.events.stat().st_size if run.folder.events.exists() else 0) < len(log):
            files = _Files(connection, run, {"events.jsonl": (len(log), 0)}, None)
            ((name, file),) = files.list("").items()
            piece = run.folder.path / "piece"
            files.get([(file, piece)])
            assert write_piece(run.folder.events, segment_offset(name), piece.read_bytes())
            pieces += 1
    assert run.folder.events.read_bytes() == log
    assert pieces > 2
