"""The card shows what a stranger wants to know, in the Hub's own form, and nothing of this machine."""

import re
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from loratory.engine.chat.contract import ChatTarget
from loratory.engine.chat.target import plan_load
from loratory.engine.config.load import config_from_mapping
from loratory.engine.config.run import DatasetConfig
from loratory.engine.data.files import DATA_ENDINGS
from loratory.engine.evaluation.job import BranchLoss, EvaluationResult, MeanScores, evaluation_file
from loratory.engine.export.card import data_names, hub_datasets, loss_curve, write_card
from loratory.engine.models.source import ModelSource
from loratory.engine.paths import local_owner
from loratory.engine.runs.history.events import EvalData
from loratory.engine.runs.history.log import EventWriter
from loratory.engine.runs.history.run_history import read_history
from loratory.engine.runs.store import RunStore
from tests.fake_results import a_preference_evaluation, a_rated_evaluation, a_test_result
from tests.invented_runs import InventedRun, a_config, write_run


def make_run(home, **changes):
    run = write_run(RunStore(home, local_owner()), a_config(**changes), InventedRun())
    folder = run.folder.adapter
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(
        '{"peft_type": "LORA", "base_model_name_or_path": "HuggingFaceTB/SmolLM2-135M-Instruct"}'
    )
    (folder / "adapter_model.safetensors").write_bytes(b"")
    return run


BASE = "HuggingFaceTB/SmolLM2-135M-Instruct"
PUBLISHED = ModelSource("/nowhere", BASE, hub_id=BASE)


def card_of(run, kind="adapter", checkpoint=None, base=PUBLISHED) -> str:
    plan = plan_load(ChatTarget.of_run(run.folder.path))
    return write_card(plan, kind, "ada/my-run", base, run=run.folder.path, checkpoint=checkpoint)


def evaluate(run) -> None:
    result = EvaluationResult(
        losses={"base": BranchLoss.from_loss(2.0, 100), "tuned": BranchLoss.from_loss(1.0, 100)},
        rows=40,
        scores={
            "base": MeanScores(exact=0.0, rouge_l=0.2, chrf=0.25, rows=20),
            "tuned": MeanScores(exact=0.5, rouge_l=0.75, chrf=0.8, rows=20),
        },
        general_losses={"base": BranchLoss.from_loss(3.0, 4000), "tuned": BranchLoss.from_loss(3.12, 4000)},
    )
    save_evaluation(run, result)


def save_evaluation(run, result: EvaluationResult) -> None:
    file = evaluation_file(run.folder.path, None)
    file.parent.mkdir(exist_ok=True)
    file.write_text(result.model_dump_json())


def front_matter(card: str) -> dict:
    return yaml.safe_load(card.split("---\n")[1])


def test_the_hub_reads_base_licence_and_tags(home):
    card = card_of(make_run(home))

    data: Any = ModelCard(card).data
    assert data.base_model == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert data.license == "apache-2.0"
    assert data.library_name == "peft"
    assert data.pipeline_tag == "text-generation"
    assert data.tags == ["loratory", "lora"]
    assert front_matter(card)["base_model_relation"] == "adapter"
    merged = front_matter(card_of(make_run(home), kind="merged"))
    assert (merged["library_name"], merged["base_model_relation"]) == ("transformers", "finetune")


def test_settings_curve_and_result_are_reported(home):
    card = card_of(make_run(home, training__learning_rate=3e-4, adapter__r=24, adapter__lora_alpha=48))

    for text in ("sample:loratory-faq", "24, 48", "0.0003, cosine", "120 steps", "torch 2.13.0", "Held-out loss"):
        assert text in card
    rows = [line for line in card.splitlines() if line.startswith(("| 1", "| 2"))]
    assert len(rows) >= 3
    assert "| Step | Loss | Held-out loss |" in card


def test_an_evaluation_is_reported_with_base_and_tuned_side_by_side(home):
    run = make_run(home)
    assert "## Evaluation" not in card_of(run)

    evaluate(run)

    card = card_of(run)
    assert "Measured on 40 held-out rows, answers on 20 of them." in card
    assert "| Base | 2.0000 | 7.39 | 0% | 0.200 | 0.250 |" in card
    assert "| This | 1.0000 | 2.72 | 50% | 0.750 | 0.800 |" in card
    assert "On 4,000 tokens of general text its loss is 3.1200, the base model's 3.0000: forgot 4%." in card


def test_a_checkpoint_tells_of_itself_and_not_of_the_end(home):
    run = make_run(home)
    evaluate(run)

    card = card_of(run, checkpoint="step-40")

    assert "## Evaluation" not in card
    assert "| Steps | 40 |" in card
    last = [line for line in card.split("| Step |")[1].splitlines() if line.startswith("| ")][-1]
    assert last.startswith("| 40 |")


def test_the_curve_holds_the_mean_of_each_stretch(home):
    history = read_history(make_run(home).folder.events)

    curve = loss_curve(history, points=4)

    assert [point.step for point in curve] == [30, 60, 90, 120]
    losses = history.steps.losses
    assert abs(curve[1].loss - losses[30:60].mean()) < 1e-9
    assert len(loss_curve(history, points=1000)) == len(losses)


def test_data_is_reported_without_its_folder():
    def dataset_of(source: str, **mix: float):
        values = {"model": {"id": "m"}, "dataset": {"source": source, "mix": mix}}
        return config_from_mapping(values).dataset

    assert data_names(dataset_of("/home/ada/secret/rows.jsonl")) == ("rows.jsonl",)
    assert data_names(dataset_of("secret/rows.csv.gz")) == ("rows.csv.gz",)
    assert data_names(dataset_of("C:\\Users\\ada\\rows.jsonl")) == ("rows.jsonl",)
    assert data_names(dataset_of("~/rows")) == ("rows",)
    assert data_names(dataset_of("org/data", **{"sample:x": 1.0})) == ("org/data", "sample:x")
    assert hub_datasets(dataset_of("org/data", **{"/home/ada/x.jsonl": 1.0})) == ("org/data",)
    assert hub_datasets(dataset_of("sample:loratory-faq")) == ()


@pytest.mark.parametrize("ending", [*DATA_ENDINGS, *(f"{ending}.gz" for ending in DATA_ENDINGS), ".zip"])
def test_a_file_that_is_gone_is_never_named_as_a_dataset_on_the_hub(ending):
    dataset = DatasetConfig(source=f"team/rows{ending}", mix={f"team/more{ending}": 1.0, "org/data-v1.5": 1.0})

    assert hub_datasets(dataset) == ("org/data-v1.5",)
    assert data_names(dataset) == (f"rows{ending}", f"more{ending}", "org/data-v1.5")


def test_the_licence_of_a_local_base_comes_from_its_own_card(home, tmp_path):
    run = make_run(home)
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n# base\n")

    known = card_of(run, base=ModelSource(str(tmp_path), "my-base"))
    unknown = card_of(run, base=ModelSource(str(tmp_path / "none"), "my-base"))

    assert front_matter(known)["license"] == "mit"
    assert "base_model" not in front_matter(known)
    assert "license" not in front_matter(unknown)
    assert "The base model `my-base` has a licence of its own" in unknown


def test_a_name_cannot_break_out_of_its_place(home):
    card = card_of(make_run(home, run__name="a | b"))

    assert "# a \\| b" in card
    assert ModelCard(card).data.to_dict()["library_name"] == "peft"


def test_a_run_on_preferences_tells_its_objective_and_what_it_prefers(home):
    run = make_run(home, training__objective="dpo", training__loss_type=["sigmoid", "sft"])
    with EventWriter(run.folder.events, attempt=1) as writer:
        measurements = {"rewards/accuracies": 0.8, "rewards/margins": 0.4}
        writer.append(EvalData(step=120, eval_loss=0.5, eval_tokens=40, rows=40, seconds=1.0, metrics=measurements))

    card = card_of(run)

    assert "| Objective | DPO, loss sigmoid + sft, beta 0.1 |" in card
    assert "| Held-out preference accuracy | 80% of 40 pairs |" in card
    assert "perplexity" not in card


def test_a_preferred_run_tells_its_start_and_its_held_out_pairs(home):
    start = make_run(home, run__name="faq | rank 16")
    run = make_run(home, training__objective="dpo", training__beta=0.2, adapter__warm_start=start.id)
    save_evaluation(run, a_preference_evaluation())

    card = card_of(run)

    assert "| Started from | the adapter of faq \\| rank 16, which is part of this one |" in card
    assert "| Objective | DPO, loss sigmoid, beta 0.2 |" in card
    assert "Preference accuracy 93%: since its start, the adapter that training started from" in card
    assert " | Chosen likelier | Per token | Margin |" in card
    assert any(line.startswith("| Start |") and "| 53% |" in line for line in card.splitlines())
    assert any(line.startswith("| This |") and "| 93% |" in line for line in card.splitlines())
    elsewhere = make_run(home, adapter__warm_start=str(home.root / "secret" / "adapter"))
    assert "| Started from | an earlier adapter, which is part of this one |" in card_of(elsewhere)
    assert "secret" not in card_of(elsewhere)


def test_a_run_on_ratings_tells_its_accuracy_and_rewards(home):
    run = make_run(home, training__objective="kto")
    save_evaluation(run, a_rated_evaluation())

    card = card_of(run)

    assert "Accuracy 83%: the reward has the sign of the label in 25 of 30 held-out completions" in card
    assert "| Accuracy | Reward, desirable | Reward, undesirable | Difference |" in card
    assert "| 83% | +0.850 | -0.670 | +1.520 |" in card


def test_test_sets_are_reported_with_intervals_and_what_may_be_chance(home):
    run = make_run(home)
    save_evaluation(run, EvaluationResult(losses={}, rows=8, scores={}, tests=(
        a_test_result("C:\\ann\\su|ms.jsonl", prompts=16), a_test_result("code.jsonl", base=1.0, tuned=1.0),
    )))  # fmt: skip

    card = card_of(run)
    assert "## Test sets" in card
    assert "| Test set | Prompts | Scorers | Base | This | McNemar's p |" in card
    (first, second) = (line for line in card.splitlines() if "jsonl" in line)
    assert re.fullmatch(
        r"\| su\\\|ms.jsonl \| 16 \| Number \| 0.25 \(0.\d\d to 0.\d\d\) \| 0.75 \(0.\d\d to 0.\d\d\) \| 0.008 \|",
        first,
    )
    assert second == "| code.jsonl | 8 | Number | 1.00 (1.00 to 1.00) | 1.00 (1.00 to 1.00) | 1.000 |"
