"""Following a run: stateless, only what is new, and only what can be done."""

import gradio as gr
import pytest

from engine.runs.control import request_start_anyway
from engine.runs.event_log import EventWriter
from engine.runs.events import StepData
from tests.invented_runs import InventedRun, a_config, write_checkpoint, write_run
from ui.tabs.drawn import Drawn
from ui.tabs.follow import FollowPart
from ui.tabs.train import TrainTab

NOTHING = gr.skip()


@pytest.fixture
def follow(laid_out) -> FollowPart:
    return laid_out(TrainTab).follow


@pytest.fixture
def invent(services):
    return lambda **story: write_run(services.runs, a_config(), InventedRun(**story))


def look(follow: FollowPart, run_id: str) -> Drawn:
    return follow.look(run_id, "", 0.9, False, False)


def shown(update) -> bool:
    return update["visible"]


def test_a_tick_with_nothing_new_sends_nothing(follow, invent):
    run = invent(state="running", steps=10)
    drawn = look(follow, run.id)

    assert follow.tick(run.id, drawn.stamp, 0.9, False, False) == NOTHING


def test_a_tick_sends_what_was_logged_since(follow, invent):
    run = invent(state="running", steps=10)
    drawn = look(follow, run.id)
    with EventWriter(run.folder.events, attempt=1) as writer:
        writer.append(StepData(step=11, epoch=0.3, loss=1.0, learning_rate=1e-4, tokens=6000, tokens_per_second=500.0))

    later = follow.tick(run.id, drawn.stamp, 0.9, False, False)

    assert "Step 11 of 120" in later.heading
    assert later.stamp != drawn.stamp
    assert later.loss != drawn.loss
    assert later.timer == NOTHING
    assert later.choice == NOTHING
    assert later.stop == later.trouble == later.body == NOTHING  # what did not change is not sent


def test_the_clock_stops_when_the_run_has_ended(follow, invent):
    run = invent(state="completed")

    assert look(follow, run.id).timer["active"] is False
    last = follow.tick(run.id, "a stamp:running:", 0.9, False, False)
    assert last.timer["active"] is False
    assert "completed" in last.choice["choices"][0][0]
    assert look(follow, invent(state="running", steps=3).id).timer["active"] is True
    assert look(follow, invent(state="queued").id).timer["active"] is True


def test_another_server_on_the_same_home_shows_the_same(services, laid_out, invent):
    run = invent(state="running", steps=10)

    one, other = (look(laid_out(TrainTab).follow, run.id) for _ in range(2))

    assert one.loss == other.loss
    assert one.stamp == other.stamp


@pytest.mark.parametrize(
    ("story", "buttons"),
    [
        ({"state": "queued"}, {"stop"}),
        ({"state": "running", "steps": 3}, {"stop", "cancel"}),
        ({"state": "running", "steps": 60}, {"stop", "cancel", "chat"}),
        ({"state": "stopping", "steps": 3}, {"cancel"}),
        ({"state": "completed"}, {"chat"}),
        ({"state": "stopped", "steps": 3}, {"resume", "chat"}),
        ({"state": "failed", "steps": 3}, {"resume"}),
        ({"state": "interrupted", "steps": 60, "resumable_step": 60}, {"resume", "chat"}),
    ],
)
def test_only_what_can_be_done_is_offered(follow, invent, story, buttons):
    drawn = look(follow, invent(**story).id)

    offered = {name for name in ("stop", "cancel", "resume", "chat") if shown(getattr(drawn, name))}

    assert offered == buttons


def test_a_stop_that_was_asked_for_is_not_offered_again(follow, invent):
    run = invent(state="running", steps=3)
    run.folder.stop_request.touch()

    drawn = look(follow, run.id)

    assert not shown(drawn.stop)
    assert shown(drawn.cancel)


def test_a_run_that_is_gone_leaves_the_empty_state(follow):
    assert "No run is under way" in look(follow, "").heading
    assert "No run is under way" in look(follow, "20250101-000000-000-abcd").heading
    assert follow.tick("", "", 0.9, False, False) == NOTHING


def test_a_run_that_is_deleted_while_it_is_followed_is_said_to_be_gone(follow, invent, services):
    run = invent(state="completed")
    stamp = look(follow, run.id).stamp
    services.runs.delete(run.id)

    drawn = follow.tick(run.id, stamp, 0.9, False, False)

    assert "There is no run" in drawn.heading
    assert drawn.timer["active"] is False


def test_the_log_is_read_only_where_it_is_open(follow, invent):
    run = invent(state="running", steps=3, log="something was said\n")

    closed = follow.look(run.id, "", 0.9, False, False)
    opened = follow.look(run.id, "", 0.9, False, True)

    assert closed.log == NOTHING
    assert "something was said" in opened.log
    run.folder.log.write_text("something was said\nand more\n", encoding="utf-8")
    assert follow.tick(run.id, closed.stamp, 0.9, False, False) == NOTHING
    assert "and more" in follow.tick(run.id, opened.stamp, 0.9, False, True).log


def test_two_pages_draw_one_figure(follow, invent, monkeypatch):
    import ui.tabs.follow as module

    drawn = []
    monkeypatch.setattr(module, "loss_figure", lambda *arguments: drawn.append(arguments) or "{}")
    run = invent(state="running", steps=3)

    look(follow, run.id)
    look(follow, run.id)

    assert len(drawn) == 1


def test_a_run_that_waits_for_memory_alone_may_be_let_start(follow, invent):
    waits = invent(state="queued", cause="Waits for memory: it needs 9.0 GiB, and the CPU has 2.0 of 16.0 GiB free.")
    stands_behind = invent(state="queued", cause="Waits for another run, which comes first.")

    assert shown(look(follow, waits.id).anyway)
    assert not shown(look(follow, stands_behind.id).anyway)
    stamp = look(follow, waits.id).stamp
    request_start_anyway(waits)
    assert not shown(follow.tick(waits.id, stamp, 0.9, False, False).anyway)


def test_a_button_that_becomes_useful_appears_with_the_next_tick(follow, invent):
    run = invent(state="running", steps=10)
    drawn = look(follow, run.id)
    write_checkpoint(run, 10)

    assert shown(follow.tick(run.id, drawn.stamp, 0.9, False, False).chat)


def test_a_glance_says_only_whether_something_is_new(follow, invent):
    run = invent(state="running", steps=10)
    stamp = look(follow, run.id).stamp
    before = follow.glance(run.id, False)
    assert before == follow.glance(run.id, False)
    assert before[0] == stamp
    assert follow.glance("", False) == ("", "")

    with EventWriter(run.folder.events, attempt=1) as writer:
        writer.append(StepData(step=11, epoch=0.3, loss=1.0, learning_rate=1e-4, tokens=6000, tokens_per_second=500.0))
    after = follow.glance(run.id, False)
    assert after[0] != before[0]
    assert after[1] == before[1]
    assert "Step 11 of 120" in follow.draw_news(run.id, stamp, 0.9, False, False)[1]

    run.folder.stop_request.touch()
    assert follow.glance(run.id, False)[1] != before[1]
    assert follow.draw_news(run.id, stamp, 0.9, False, False) == NOTHING  # the change of the buttons draws it all
