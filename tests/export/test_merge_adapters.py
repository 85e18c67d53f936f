"""Merging the adapters of runs: the new run's adapter is PEFT's own merge, it is a run like others, and what cannot be merged is refused."""

import json

import pytest

from loratory.engine.chat.contract import ChatTarget
from loratory.engine.chat.target import plan_load
from loratory.engine.config.results import MergeConfig
from loratory.engine.errors import EngineError, ModelError, RunError
from loratory.engine.export.card import write_card
from loratory.engine.export.job import run_in
from loratory.engine.export.merge import MergeJob, merged_config
from loratory.engine.models.source import resolve_model
from loratory.engine.runs.provenance import read_provenance
from loratory.engine.runs.run import RunState
from loratory.engine.runs.store import RunStore
from loratory.engine.runs.summary import RunIndex
from tests.chat.tiny_adapters import ia3, lora


@pytest.fixture
def store(home):
    return RunStore(home, "ann")


def trained(store, base, adapter_config, seed, **sections):
    """Return a complete run with a random adapter."""
    from loratory.engine.config.load import config_from_mapping
    from tests.chat.tiny_adapters import make_adapter

    values = {"model": {"id": str(base)}, "dataset": {"source": "sample:loratory-faq"}, "run": {"name": f"run {seed}"}}
    run = store.create(config_from_mapping({**values, **sections}))
    make_adapter(base, run.folder.adapter, adapter_config, seed=seed)
    run.folder.write_state(RunState(state="completed", attempt=1))
    return run


def peft_merge(base, folders, weights, method, **values):
    """Return the tensors of a merge by PEFT, of adapters that were loaded afresh."""
    import torch
    from peft import PeftModel, get_peft_model_state_dict
    from transformers import AutoModelForCausalLM

    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folders[0], adapter_name="part_0")
    for number, folder in enumerate(folders[1:], start=1):
        model.load_adapter(folder, adapter_name=f"part_{number}")
    torch.manual_seed(MergeConfig().seed)
    model.base_model.add_weighted_adapter(
        [f"part_{n}" for n in range(len(folders))], weights, "both", combination_type=method, **values
    )
    return get_peft_model_state_dict(model, adapter_name="both")


def updates(folder, is_rank_stabilized=False):
    """Return the change of each weight that an adapter makes."""
    from safetensors.torch import load_file

    config, tensors = (
        json.loads((folder / "adapter_config.json").read_text()),
        load_file(folder / "adapter_model.safetensors"),
    )
    scale = config["lora_alpha"] / (config["r"] ** 0.5 if config["use_rslora"] else config["r"])
    return {
        name.removesuffix(".lora_A.weight"): scale * tensors[name.replace("lora_A", "lora_B")] @ tensors[name]
        for name in tensors if "lora_A" in name
    }  # fmt: skip


@pytest.mark.parametrize(
    ("method", "values"),
    [("svd", {}), ("svd", {"rank": 8}), ("linear", {}), ("cat", {}), ("ties", {"density": 0.5}), ("dare_ties", {"density": 0.5})],
    ids=["svd", "svd of 8", "linear", "cat", "ties", "dare_ties"],
)  # fmt: skip
def test_the_adapter_is_that_of_pefts_own_merge(store, tiny_model_folder, method, values):
    import torch
    from safetensors.torch import load_file

    parts = [trained(store, tiny_model_folder, lora(), seed) for seed in (1, 2)]
    settings = MergeConfig(method=method, **values)

    merged = MergeJob(store.home, store, parts, [0.7, 0.4], settings, "both").run()

    own = {"svd_rank": values["rank"]} if "rank" in values else {}
    if "density" in values:
        own["density"] = values["density"]
    expected = peft_merge(
        tiny_model_folder, [part.folder.adapter for part in parts], [0.7, 0.4], method, svd_full_matrices=False, **own
    )
    tensors = load_file(merged.folder.adapter / "adapter_model.safetensors")
    assert tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(tensors[name], tensor.contiguous(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("is_rank_stabilized", [False, True])
def test_nothing_is_lost_where_the_rank_suffices_also_with_rslora(store, tiny_model_folder, is_rank_stabilized):
    """PEFT alone would scale the merge of rsLoRA adapters by the root of its rank."""
    import torch

    adapter = lora(use_rslora=is_rank_stabilized)
    parts = [trained(store, tiny_model_folder, adapter, seed) for seed in (1, 2)]
    for settings in (MergeConfig(method="cat"), MergeConfig(method="svd", rank=8)):
        merged = MergeJob(store.home, store, parts, [1.0, -0.5], settings).run()

        first, second, both = (updates(run.folder.adapter) for run in (*parts, merged))
        assert both.keys() == first.keys()
        for name in both:
            torch.testing.assert_close(both[name], first[name] - 0.5 * second[name], rtol=1e-3, atol=1e-4)


def test_the_result_is_a_run_that_says_where_it_comes_from(store, tiny_model_folder):
    tests = [{"source": f"/data/{name}.jsonl", "scorers": [{"scorer": "equals"}]} for name in ("a", "b", "c")]
    parts = [
        trained(store, tiny_model_folder, lora(), 1, evaluation={"tests": tests[:2]}),
        trained(store, tiny_model_folder, lora(), 2, evaluation={"tests": tests[1:]}, dataset={"source": "sample:loratory-sums"}),
    ]  # fmt: skip
    before = [sorted(path.name for path in part.folder.adapter.iterdir()) for part in parts]

    merged = MergeJob(store.home, store, parts, [0.5, 0.5]).run()
    config, summary = merged.folder.read_config(), RunIndex(store).summary(merged)

    assert (summary.state, summary.name, summary.method) == ("completed", "run 1 + run 2", "LoRA")
    assert [test.title for test in config.evaluation.tests] == ["a.jsonl", "b.jsonl", "c.jsonl"]
    assert (config.dataset.source, config.dataset.mix) == ("sample:loratory-faq", {"sample:loratory-sums": 1.0})
    assert (config.adapter.r, config.adapter.lora_alpha) == (8, 8)
    origin = read_provenance(merged.folder).origin_words
    assert origin == f"{parts[0].id} (0.5) and {parts[1].id} (0.5) by cat"
    plan = plan_load(ChatTarget.of_run(merged.folder.path), store.home)
    source = resolve_model(plan.model, store.home)
    card = write_card(plan, "adapter", "both", source, run=run_in(merged.folder.path), checkpoint=None)
    assert f"| Merged from | {origin} |" in card
    assert before == [sorted(path.name for path in part.folder.adapter.iterdir()) for part in parts]
    assert not list((store.home.cache / "merges").iterdir())


def test_what_cannot_be_merged_is_refused_and_leaves_nothing(store, tiny_model_folder, tmp_path):
    first, other_rank = trained(store, tiny_model_folder, lora(), 1), trained(store, tiny_model_folder, lora(r=8), 2)
    dora, scales = (
        trained(store, tiny_model_folder, lora(use_dora=True), 3),
        trained(store, tiny_model_folder, ia3(), 4),
    )
    waiting = store.create(first.folder.read_config())
    elsewhere = tmp_path / "other-base"
    elsewhere.symlink_to(tiny_model_folder)
    other_base = trained(store, elsewhere, lora(), 5)
    runs = store.ids()
    for parts, weights, settings, reason in (
        ([first], [1.0], MergeConfig(), "1 runs and 1 weights"),
        ([first, first], [0.5, 0.5], MergeConfig(), "cannot be merged"),
        ([first, other_rank], [1.0], MergeConfig(), "2 runs and 1 weights"),
        ([first, other_rank], [0.5, 0.5], MergeConfig(method="ties"), "same r value"),
        ([first, dora], [0.5, 0.5], MergeConfig(), "DoRA"),
        ([first, scales], [0.5, 0.5], MergeConfig(), "IA3"),
        ([first, waiting], [0.5, 0.5], MergeConfig(), "no adapter yet"),
        ([first, other_base], [0.5, 0.5], MergeConfig(), "different weights"),
    ):
        with pytest.raises((ModelError, RunError), match=reason):
            MergeJob(store.home, store, parts, weights, settings).run()
    assert store.ids() == runs
    job = MergeJob(store.home, store, [first, other_rank], [0.5, 0.5])
    job.stop()
    with pytest.raises(EngineError):
        job.run()
    assert store.ids() == runs


def test_rows_that_are_read_otherwise_are_not_mixed_in(store, tiny_model_folder):
    first = trained(store, tiny_model_folder, lora(), 1).folder.read_config()
    other = first.model_copy(update={"dataset": first.dataset.model_copy(update={"source": "b", "train_on": "all"})})
    assert merged_config([first, other]).dataset == first.dataset
    assert merged_config([first, first]).dataset == first.dataset
