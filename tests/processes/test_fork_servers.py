"""Fork servers of the tests serve those environments that come again; others never leave heavy workers without one."""

import pytest

from loratory.engine.processes.spawn import worker_argv
from loratory.engine.runs.job import WORKER_MODULE
from tests import fork_server
from tests.fork_server import ForkServers

WORKER = worker_argv(WORKER_MODULE, ("a-run",))


class FakeServer:
    """Forks nothing, and counts."""

    def __init__(self, environment, kind):
        self.environment, self.forked, self.is_closed = environment, 0, False

    def fork(self, argv, environment, descriptors):
        assert not self.is_closed
        self.forked += 1
        return 1

    def close(self):
        self.is_closed = True


@pytest.fixture
def servers_log(monkeypatch):
    """All servers that were started."""
    servers: list[FakeServer] = []

    def start(environment, kind):
        servers.append(FakeServer(environment, kind))
        return servers[-1]

    monkeypatch.setattr(fork_server, "ForkServer", start)
    return servers


def test_an_environment_of_one_test_gets_a_server_where_it_comes_again(servers_log):
    servers = ForkServers()
    for number in range(20):
        assert servers.fork(WORKER, {"HF_ENDPOINT": f"http://127.0.0.1:{number}"}, {}) is None
    assert servers_log == []

    assert servers.fork(WORKER, {"HF_ENDPOINT": "http://127.0.0.1:7"}, {}) == 1


def test_where_one_stand_in_serves_many_workers_the_first_one_has_a_server(servers_log):
    assert ForkServers(one_test=None).fork(WORKER, {"HF_ENDPOINT": "http://127.0.0.1:7"}, {}) == 1


def test_however_many_environments_there_were_the_next_one_has_a_server(servers_log):
    servers = ForkServers()
    for number in range(20):
        assert servers.fork(WORKER, {"OMP_NUM_THREADS": "1"}, {}) == 1
        assert servers.fork(WORKER, {"PATH": f"/programs-{number}"}, {}) == 1

    assert servers_log[0].forked == 20, "the one that is asked for again and again stays"
    assert sum(not server.is_closed for server in servers_log) == fork_server._MOST_SERVERS["heavy"]


def test_what_no_import_reads_needs_no_server_of_its_own(servers_log):
    servers = ForkServers()
    for number in range(5):
        servers.fork(WORKER, {"PYTEST_CURRENT_TEST": f"test {number}", "LORATORY_HOME": f"/home-{number}"}, {})

    assert len(servers_log) == 1
