"""Tasks of lm-eval on a run's weights, with a stand-in for its two entry points; by hand they were run on lm-eval 0.4.13."""

import importlib.util
import os
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from loratory.engine.chat.contract import ChatTarget
from loratory.engine.errors import DatasetError, ModelError, RunError
from loratory.engine.evaluation.job import EvaluationJob, EvaluationRequest
from loratory.engine.evaluation.worker.harness import run_tasks
from loratory.engine.hardware.processor import describe_processor
from tests.evaluation.conftest import evaluate, order_of


@pytest.fixture
def calls(monkeypatch):
    """Install a stand-in of lm-eval, and return what was asked of it, with the logits of the model at that time."""
    requests: list[SimpleNamespace] = []
    lm_eval, models, huggingface = (ModuleType(f"lm_eval{name}") for name in ("", ".models", ".models.huggingface"))

    def wrap(model, **options):
        return SimpleNamespace(model=model, options=options)

    def simple_evaluate(lm, *, tasks, **options):
        if "unknown" in tasks:
            raise KeyError("unknown")
        with torch.no_grad():
            logits = lm.model(torch.arange(4)[None]).logits
        requests.append(SimpleNamespace(lm=lm, tasks=tasks, logits=logits, **options))
        figures = {"alias": "Sums", "acc,none": 0.5, "acc_stderr,none": 0.1, "acc,strict": 0.25, "sample_len": 4}
        return {"results": {"sums": figures | {"bleu,none": float(len(requests)), "bleu_stderr,none": "N/A"}}}

    monkeypatch.setattr(lm_eval, "simple_evaluate", simple_evaluate, raising=False)
    monkeypatch.setattr(huggingface, "HFLM", wrap, raising=False)
    for module in (lm_eval, models, huggingface):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return requests


def test_base_and_tuned_answer_with_their_own_weights_and_the_losses_stay(home, run, calls):
    order = order_of(run, max_rows=3)
    before = evaluate(home, order)

    result = evaluate(home, order.model_copy(update={"lm_eval": ("sums", "tasks/own.yaml")}))

    shared = {"sums acc": 0.5, "sums acc_stderr": 0.1, "sums acc,strict": 0.25}
    assert result.lm_eval == {"base": shared | {"sums bleu": 1.0}, "tuned": shared | {"sums bleu": 2.0}}
    assert result.losses == before.losses
    base, tuned = calls
    assert not torch.equal(base.logits, tuned.logits), "the adapter is active in the second one alone"
    assert (base.tasks, base.limit, base.log_samples) == (["sums", "tasks/own.yaml"], 3, False)
    assert base.lm.options["trust_remote_code"] is False
    assert os.environ["DISABLE_MULTIPROC"] == "1", "it would fork a process that has threads"


@pytest.mark.usefixtures("calls")
def test_an_unknown_task_is_an_error_with_what_helps(home, run):
    with pytest.raises(DatasetError, match=r"lm-eval failed \(KeyError: 'unknown'\).*lm-eval ls tasks"):
        evaluate(home, order_of(run).model_copy(update={"lm_eval": ("unknown",)}))


@pytest.mark.usefixtures("calls")
def test_virtual_tokens_are_refused():
    weights = SimpleNamespace(branch_names=["tuned"], branch=lambda _: SimpleNamespace(virtual_tokens=5))

    with pytest.raises(ModelError, match="virtual tokens"):
        run_tasks(["sums"], weights, None, None)


def test_without_lm_eval_the_command_that_brings_it_is_named(home, run, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "lm_eval" else find(name, *rest)
    )
    request = EvaluationRequest(target=ChatTarget.of_run(run), lm_eval=("arc_easy",))

    with pytest.raises(RunError, match=r"not installed here\. `pip install lm-eval` brings it"):
        EvaluationJob(home, request, choose=lambda _: describe_processor()).run()
