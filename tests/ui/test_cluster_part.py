"""A run for a Slurm cluster on the Train tab: what it asks for, what is free, and that no click waits for Slurm."""

import threading
import time
from types import SimpleNamespace

import pytest

from loratory.engine.config.run import ModelConfig
from loratory.engine.errors import ClusterUnreachableError
from loratory.engine.paths import LoratoryHome
from loratory.engine.places.slurm.place import CLUSTER_FILE, ClusterPlace
from loratory.ui.backend.cluster import ClusterForecast, Forecast
from loratory.ui.form import JUDGE_FOR
from loratory.ui.services import Services
from loratory.ui.side_panel import SidePanel, _devices
from loratory.ui.tabs.run_place import offers_cluster, render_forecast
from loratory.ui.tabs.train import TrainTab
from tests.invented_runs import a_config
from tests.ui.drafts import form_values
from tests.waiting import wait_until

CLUSTER = "gpu_types: [{name: t4, memory_gib: 15}, {name: a100, memory_gib: 80, count: 8}]\n"
SLOW = ClusterUnreachableError(
    "Slurm does not answer (sinfo took longer than 20 s).", "Runs continue; Loratory tries again."
)


@pytest.fixture
def cluster(home):
    home.make_writable()
    (home.root / CLUSTER_FILE).write_text(CLUSTER)


def draft_for(tab: TrainTab, **changes):
    config = a_config(**{"run__where": "slurm", **changes})
    return tab.page.draft(tab.page.form.updates(config.model_dump(mode="json")))


def panel_of(tab: TrainTab, draft):
    """Return what the panel shows for a draft."""
    part, views = tab.place.panels["slurm"], {**tab.page.views, **tab.page.later_views}
    return {name: views[getattr(part, name)](draft) for name in ("panel", "offer", "forecast", "timer")}


def answering(services: Services, query) -> None:
    object.__setattr__(services, "forecast", ClusterForecast(query))


def test_the_panel_shows_what_the_run_asks_for_what_is_free_and_when_it_starts(cluster, laid_out, services):
    # From when it is asked: the page may take half a minute to be laid out.
    answering(services, lambda *_: Forecast({"t4": 0, "a100": 3}, time.time() + 1230))
    tab = laid_out(TrainTab)
    draft = draft_for(tab, slurm__gpu_type="a100", slurm__gpus=2, slurm__memory_gib=24, slurm__limit_hours=3)

    panel = panel_of(tab, draft)
    wait_until(lambda: not services.forecast.is_querying)
    now = tab.place.panels["slurm"].show_latest()

    assert panel["panel"]["visible"]
    for text in ("2×a100, 80 GiB", "24.0 GiB", "3 h"):
        assert text in panel["offer"]
    assert "Free now: 0 × t4, 3 × a100. Expected start: in 20 min." in now[tab.place.panels["slurm"].forecast]
    assert now[tab.place.panels["slurm"].timer]["active"] is False


def test_a_slurm_that_hangs_keeps_no_click_waiting(cluster, laid_out, services):
    hangs = threading.Event()
    requests = []

    def query(*_: object) -> Forecast:
        requests.append(threading.current_thread().name)
        hangs.wait()
        return Forecast(trouble=SLOW)

    answering(services, query)
    tab = laid_out(TrainTab)
    for epochs in range(1, 6):
        panel = panel_of(tab, draft_for(tab, training__num_train_epochs=epochs))
        assert "Querying Slurm" in panel["forecast"]
        assert panel["timer"]["active"] is True
        assert "Querying Slurm" in tab.place.panels["slurm"].show_latest()[tab.place.panels["slurm"].forecast]
    wait_until(lambda: requests != [])
    assert requests == ["cluster-forecast"], "asked once, in a thread of its own"

    hangs.set()
    wait_until(lambda: not services.forecast.is_querying)
    assert "took longer than 20 s" in tab.place.panels["slurm"].show_latest()[tab.place.panels["slurm"].forecast]


def test_the_same_question_is_asked_again_after_a_while_and_another_one_at_once():
    now, requests = [0.0], []
    forecast = ClusterForecast(
        lambda place, config: requests.append(config) or Forecast({"a100": 1}), clock=lambda: now[0]
    )

    def know(epochs: int) -> Forecast | None:
        known = forecast.find(ClusterPlace(), a_config(training__num_train_epochs=epochs))
        wait_until(lambda: not forecast.is_querying)
        return known

    assert know(1) is None
    assert know(1) == Forecast({"a100": 1})
    assert len(requests) == 1
    now[0] += 31
    know(1)
    assert len(requests) == 2
    assert know(2).start is None, "what is free is still known, and the start is another's"
    assert len(requests) == 3


def test_a_question_that_fails_unexpectedly_is_not_asked_for_ever():
    def fail(*_: object) -> Forecast:
        raise ValueError("nonsense")

    forecast = ClusterForecast(fail)
    forecast.find(ClusterPlace(), a_config())
    wait_until(lambda: not forecast.is_querying)
    assert forecast.latest is not None
    assert forecast.latest.trouble is not None


@pytest.mark.parametrize(
    ("content", "text"),
    [(None, "There is no cluster.yaml in LORATORY_HOME."), ("gpu_types: 7\n", "gpu_types"), ("{}\n", "no GPUs")],
)
def test_a_cluster_that_was_not_set_up_is_explained_where_it_is_chosen(home, laid_out, content, text):
    home.make_writable()
    if content is not None:
        (home.root / CLUSTER_FILE).write_text(content)
    tab = laid_out(TrainTab)

    panel = panel_of(tab, draft_for(tab))

    assert text in panel["offer"]
    assert (panel["forecast"], panel["timer"]["active"]) == ("", False)


def test_a_run_here_or_at_hugging_face_shows_nothing_of_the_cluster_and_asks_nothing(cluster, laid_out, services):
    answering(services, lambda *_: pytest.fail("it was asked"))
    tab = laid_out(TrainTab)

    for where in ("local", "jobs"):
        panel = panel_of(tab, draft_for(tab, run__where=where))
        assert not panel["panel"]["visible"]
        assert (panel["offer"], panel["forecast"]) == ("", "")


def test_html_in_what_slurm_answers_is_text():
    result = render_forecast(Forecast({"<b>x</b>": 1}), is_querying=False)

    assert "<b>" not in result
    assert "Slurm gives no expected start." in result
    assert "Expected start: now." in render_forecast(Forecast(start=10.0), is_querying=False, now=9.0)


def test_members_may_choose_a_cluster_that_an_admin_set_up_and_guests_never(home):
    home.make_writable()

    def offers(role: str) -> bool:
        lab = LoratoryHome(home.root, "ann", role)
        return offers_cluster(SimpleNamespace(person=object(), home=lab))

    assert not offers("member")
    (home.root / CLUSTER_FILE).write_text(CLUSTER)
    assert offers("member")
    assert not offers("guest")
    assert offers_cluster(SimpleNamespace(person=None, home=home))


def test_what_memory_is_judged_for_follows_the_place(cluster, laid_out, services):
    services.shapes.learn(ModelConfig(id="smollm2-135m-instruct"))
    panel = laid_out(SidePanel)
    page = panel.page

    def judge(where: str, device: str = ""):
        settings = {"model__id": "smollm2-135m-instruct", "run__where": where, JUDGE_FOR: device}
        draft = page.draft(form_values(page.form, **settings))
        return page.views[panel._place](draft), page.views[panel.panel](draft)

    place, panel_of = judge("slurm")
    assert place == "Slurm cluster: t4, 15.0 GiB"
    assert "Memory on t4" in panel_of
    place, panel_of = judge("slurm", "A100 80 GB")
    assert place == "Slurm cluster: t4, 15.0 GiB"
    assert "Estimate for NVIDIA A100 80 GB. A run still starts on the Slurm cluster." in panel_of
    assert judge("local")[0] == judge("local", "A100 80 GB")[0] == "This machine"
    assert _devices(place)[0] == (place, "")
    assert [name for _, name in _devices(place)] == [name for _, name in _devices("This machine")]
