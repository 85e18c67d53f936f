"""The sandbox: real attackers get a reason and nothing else, and the next answer has its score."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from loratory.engine.errors import WorkerError
from loratory.engine.scoring.base import NoScoreError, ScoredAnswer
from loratory.engine.scoring.sandbox import program as module
from loratory.engine.scoring.sandbox.program import Program, isolation, require_isolation
from loratory.engine.scoring.session import ScoringSession
from tests.any_scorer import scorer_from
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
needs_namespaces = pytest.mark.skipif(bool(isolation()), reason="this machine gives no namespaces")
SECONDS = 1.0
TESTS = "assert add(1, 2) == 3\nassert add(2, 2) == 4"
GOOD = "def add(a, b):\n    return a + b"
FILE = """
def score(prompt, answer, **columns):
    if answer == "good":
        return 1
    exec(answer, {})
    return 0.5
"""

# What each does, and what of it a person reads.
ATTACKERS = {
    "fork bomb": ("import os\nwhile True:\n    try: os.fork()\n    except OSError: pass", "took too long"),
    "endless loop": ("while True: pass", "took too long"),
    "ignored errors": ("while True:\n    try:\n        while True: pass\n    except BaseException: pass", "took too long"),
    "endless sleep": ("import time\ntime.sleep(1000)", "took too long"),
    "10 GB": ("x = bytearray(10 << 30)", "MemoryError"),
    "10 GB shared": ("import mmap\nmmap.mmap(-1, 10 << 30)", "memory"),
    "os._exit": ("import os\nos._exit(0)", "ended by itself (code 0)"),
    "sys.exit": ("import sys\nsys.exit(0)", "SystemExit"),
    "crash": ("import ctypes\nctypes.string_at(0)", "ended by itself"),
    "network": ("import socket\nsocket.create_connection(('1.1.1.1', 80), 1)", "OSError"),
    "loopback": ("import socket\nsocket.create_connection(('127.0.0.1', PORT), 1)", "OSError"),
    "home": ("import os\nopen(HOME).read()", "FileNotFoundError"),
    "other processes": ("import os\nprint(open(f'/proc/{PID}/environ').read())", "FileNotFoundError"),
    "system files": ("print(open('/etc/passwd').read())", "FileNotFoundError"),
    "writing outside": ("open('/usr/lib/bait', 'w')", "OSError"),
    "writing to libraries": ("import json\nopen(json.__file__, 'a')", "PermissionError"),
    "large file": ("with open('big', 'wb') as f:\n    while True: f.write(bytes(1 << 20))", "OSError"),
    "output": ("import os\nfor fd in range(3, 20):\n  try:\n    while True: os.write(fd, bytes(1 << 20))\n  except OSError: pass", "wrote more than"),
    "dripping": ("import os, time\nwhile True:\n  for fd in range(3, 20):\n    try: os.write(fd, b'x')\n    except OSError: pass\n  time.sleep(0.0003)", "took too long"),
    "closing the channel": ("import os, socket\nfor fd in range(3, 20):\n  try: socket.socket(fileno=fd).shutdown(2)\n  except OSError: pass\nwhile True: pass", "closed its channel"),
    "leaving the group": ("import ctypes, os\nctypes.CDLL(None).prctl(1, 0, 0, 0, 0)\nos.fork()\nwhile True:\n  try: os.setsid()\n  except OSError: pass", "took too long"),
    "killing all": ("import os, signal\nos.kill(-1, signal.SIGKILL)\nwhile True: pass", ""),
    "killing the parent": ("import os, signal\nos.kill(os.getppid() or PARENT, signal.SIGKILL)", ""),
    "namespaces": ("import ctypes\nassert ctypes.CDLL(None).unshare(0x10000000) == 0", "AssertionError"),
    "another account": ("import os\nos.setuid(0)", "PermissionError"),
    "environment": ("import os\nraise ValueError(sorted(os.environ))", "['HOME', 'LANG', 'OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'PATH', 'TMPDIR']"),
}  # fmt: skip


@pytest.fixture
def bait(tmp_path, monkeypatch):
    """Return what attackers are after: a secret at home, a listening port, this process."""
    import socket

    monkeypatch.setenv("SECRET_TOKEN", "sk-secret")
    (tmp_path / "secret").write_text("sk-secret")
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield {
            "HOME": repr(str(tmp_path / "secret")),
            "PORT": str(server.getsockname()[1]),
            "PID": str(os.getpid()),
            "PARENT": str(os.getpid()),
        }


@needs_namespaces
@pytest.mark.parametrize("attack", ATTACKERS)
def test_an_attacker_gets_a_reason_and_the_next_answer_its_score(attack, bait, tmp_path):
    source, reason = ATTACKERS[attack]
    for name, value in bait.items():
        source = source.replace(name, value)
    (tmp_path / "scorer.py").write_text(FILE)
    scorer = scorer_from({"scorer": "file", "path": str(tmp_path / "scorer.py"), "seconds": SECONDS})
    begin = time.monotonic()
    with ScoringSession([scorer], workers=1) as session:
        (bad,), (good,) = session.score([ScoredAnswer("", source), ScoredAnswer("", "good")])
        seconds = time.monotonic() - begin

    assert bad.score is None
    assert reason in bad.reason
    assert good == (1.0, "")
    assert seconds < 10
    assert bad.reason
    wait_until(lambda: not orphans(), 10)
    assert "sk-secret" not in bad.reason


def orphans():
    """Return the programs of sandboxes whose sandbox has ended."""
    processes = [process.info for process in psutil.process_iter(["cmdline", "ppid"])]
    return [info for info in processes if info["ppid"] == 1 and "guest.py" in str(info["cmdline"])]


# How code pretends to be right. None: it never answers.
PRETENDERS = {
    "leaves with success": ("import sys\nsys.exit(0)", 0.0),
    "leaves when called": ("def add(a, b):\n    import os\n    os._exit(0)", None),
    "raises SystemExit when called": ("def add(a, b):\n    raise SystemExit(0)", 0.0),
    "says that it passed": ("import os\nprint('passed')\nos.write(1, b'passed')\ndef add(a, b): return 0", 0.0),
    "sends a result of its own": (
        "import os\nfor fd in range(3, 20):\n  try: os.write(fd, b'{\"done\": [2, 2, \"\"]}\\n')\n  except OSError: pass", None,
    ),
    "equals everything": ("class E(int):\n    __eq__ = lambda *_: True\n    __hash__ = None\ndef add(a, b): return E()", 0.0),
    "equals everything as an object": ("class E:\n    __eq__ = __ge__ = lambda *_: True\ndef add(a, b): return E()", 0.0),
    "replaces AssertionError": ("import builtins\nbuiltins.AssertionError = ValueError\ndef add(a, b): return 0", 0.0),
    "replaces builtins": ("import builtins\nfor n in ('all', 'len', 'isinstance'): setattr(builtins, n, lambda *_: True)\ndef add(a, b): return 0", None),
    "raises AssertionError": ("def add(a, b): raise AssertionError", 0.0),
    "reads the tests": (
        "import glob, gc\ntexts = [open(f, errors='ignore').read() for f in glob.glob('/sandbox/**', recursive=True) if f != '/sandbox/']\n"
        "texts += [o for o in gc.get_objects() if isinstance(o, str) and 'add(1, 2) ==' in o]\n"
        "def add(a, b): return 3 if texts and (a, b) == (1, 2) else 0", 0.0,
    ),
    "walks the frames": (
        "import sys\ndef add(a, b):\n    frame, seen = sys._getframe(), []\n    while frame:\n        seen += list(frame.f_globals) + list(frame.f_locals)\n"
        "        frame = frame.f_back\n    return a + b if 'tests' in seen else 0", 0.0,
    ),
    "changes its arguments": ("def add(a, b):\n    return [a, b]", 0.0),
    "is right": (GOOD, 1.0),
}  # fmt: skip


@needs_namespaces
@pytest.mark.parametrize("manner", PRETENDERS)
def test_tests_are_not_fooled(manner):
    code, score = PRETENDERS[manner]
    scorer = scorer_from({"scorer": "code_tests", "seconds": 3})
    with ScoringSession([scorer], workers=1) as session:
        (verdict,), (good,) = session.score([ScoredAnswer("", text, {"tests": TESTS}) for text in (code, GOOD)])

    assert verdict.score == score
    assert verdict.reason or score == 1
    assert good.score == 1


STACK = """
class Stack:
    def __init__(self): self.items = []
    def push(self, item): self.items.append(item)
    def pop(self):
        if not self.items: raise IndexError('empty')
        return self.items.pop()
    def __len__(self): return len(self.items)
def double(items): return [2 * item for item in items]
def numbers():
    yield from range(3)
def key(): return {(1, 2): {3}, 'b': b'\\xff', None: 1.5}
def fail(): raise ValueError('bad value')
LIMIT = 5
"""

TESTS_OF_MANY_KINDS = """
s = Stack()
s.push(4)
assert len(s) == 1
assert s.pop() == 4
try:
    s.pop()
    assert False
except IndexError:
    pass
assert list(numbers()) == [0, 1, 2]
assert key() == {(1, 2): {3}, 'b': b'\\xff', None: 1.5}
assert LIMIT == 5
def test_failing():
    try:
        fail()
    except ValueError as error:
        assert 'bad' in str(error)
    else:
        raise AssertionError
def check(candidate):
    assert candidate([1, 2]) == [2, 4]
"""


def test_values_objects_and_exceptions_cross_between_code_and_tests():
    row = ScoredAnswer("", f"```python\n{STACK}\n```", {"tests": TESTS_OF_MANY_KINDS, "entry_point": "double"})
    with ScoringSession([scorer_from({"scorer": "code_tests"})], workers=1) as session:
        ((verdict,),) = session.score([row])

    assert verdict == (1.0, "")


def test_tests_that_are_not_python_are_a_reason():
    with ScoringSession([scorer_from({"scorer": "code_tests"})], workers=1) as session:
        (first,), (second,) = session.score(
            [ScoredAnswer("", GOOD, {"tests": "assert ("}), ScoredAnswer("", GOOD, {"tests": "x = 1"})]
        )

    assert first.score is None
    assert "SyntaxError" in first.reason
    assert second.score is None


def test_functions_of_the_tests_stay_out_of_the_code():
    row = ScoredAnswer("", "def apply(f): return f(1)", {"tests": "assert apply(lambda n: n) == 1"})
    with ScoringSession([scorer_from({"scorer": "code_tests"})], workers=1) as session:
        ((verdict,),) = session.score([row])

    assert verdict.score == 0
    assert "cannot pass a function" in verdict.reason


@pytest.mark.skipif(os.getuid() == 0, reason="root is tried as another account")
def test_limits_hold_without_namespaces():
    check_limits(namespaces=False)


def check_limits(namespaces):
    """Try attackers in a sandbox of this account."""
    for source, reason in (
        ("x = bytearray(10 << 30)", "MemoryError"),
        ("import os\nos._exit(4)", "code 4"),
        ("while True: pass", "took too long"),
        ("import os\nwhile True:\n    try: os.fork()\n    except OSError: pass", "took too long"),
    ):
        program = Program(512, namespaces=namespaces)
        try:
            answer = program.request({"source": source}, 1.0)
            text = str(answer.get("raised"))
        except NoScoreError as error:
            text = str(error)
        finally:
            program.close()
        assert reason in text, text


PROOF = """
import os
os.setgroups([])
os.setgid(54321)
os.setuid(54321)
from loratory.engine.scoring.sandbox.program import isolation
from tests.scoring.test_sandbox import check_limits
check_limits(namespaces=False)
check_limits(not isolation())
print(isolation())
"""


@pytest.mark.skipif(os.getuid() != 0, reason="another account is needed")
def test_an_ordinary_account_is_isolated_as_root_is():
    shared = f"/usr/bin/python{sys.version_info[0]}.{sys.version_info[1]}"  # ours may be at root's home
    check = "import os; os.setuid(54321); os.execv({0!r}, [{0!r}, '-c', ''])"
    pythons = [
        python
        for python in (sys.executable, shared)
        if not subprocess.run([sys.executable, "-c", check.format(python)], capture_output=True, check=False).returncode
    ]
    if not pythons:
        pytest.skip("another account has no Python of this version")
    path = [folder for folder in sys.path if folder and not folder.startswith(sys.base_prefix)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path), "PYTHONDONTWRITEBYTECODE": "1"}
    process = subprocess.run(
        [pythons[0], "-c", PROOF], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )

    assert process.returncode == 0, process.stderr
    assert process.stdout.strip() == str(isolation())


def test_people_who_share_a_machine_are_refused_where_isolation_is_missing(monkeypatch):
    monkeypatch.setattr(module, "isolation", lambda: ("use the network", "read files"))

    with pytest.raises(WorkerError, match="A scorer file needs a sandbox; on this machine code could use the network"):
        require_isolation("A scorer file")

    monkeypatch.setattr(module, "isolation", lambda: ())
    require_isolation("A scorer file")
