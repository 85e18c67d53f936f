"""A demo of a Space that trains nothing and loads no model."""

from pathlib import Path

from loratory.engine.accounts.people import DEMO_OWNER
from loratory.engine.config.presets import find_preset
from loratory.engine.paths import LoratoryHome
from loratory.engine.runs.run import Run
from loratory.engine.runs.store import RunStore
from loratory.engine.space.demo import DEMO_PRESET, Demo
from loratory.engine.space.demo_chat import DemoChat
from tests.fake_chat import FakeChatSession
from tests.fake_inspector import FakeInspector
from tests.fake_launcher import FakeLauncher
from tests.invented_runs import InventedRun, write_run


def a_demo(root: Path, session: object | None = None) -> Demo:
    """Return a demo without a run, in a home of its own."""
    home = LoratoryHome(root)
    home.make_writable()
    launcher = FakeLauncher(RunStore(home, DEMO_OWNER), seconds_per_step=0.001)
    chat = DemoChat(home, session or FakeChatSession(0.0))  # type: ignore[arg-type]
    return Demo(home, launcher, FakeInspector(), chat)  # type: ignore[arg-type]


def with_run(demo: Demo, contents: InventedRun | None = None) -> Run:
    """Give a demo its run, by default one that completed."""
    return write_run(demo.runs, find_preset(DEMO_PRESET).load(), contents or InventedRun())


def with_sample(demo: Demo) -> Demo:
    """Compute everything that the page of a completed run shows."""
    demo.advance()
    demo.advance()
    return demo
