"""Scripts of preference runs hold the run's tokens, masks, split and order; that they train is in tests/e2e."""

import argparse
import json
from typing import Any

import pytest

from engine.config.objectives import objective_of
from engine.data.passes.prepare import prepare_dataset
from engine.data.render.tokenize import RatedRow, TokenizedPair
from engine.data.step_plan import EpochPlanner, PlanSettings
from engine.errors import DatasetError
from engine.inspector.worker.load_tokenizer import load_tokenizer
from engine.models.source import ModelSource
from engine.training.batching.steps import StepBatches, TrainerSetup
from engine.training.objectives import TRAINING_OBJECTIVES
from tests.export.test_script import make_config, names_of, write_lines
from tests.export.test_short_script import STYLES


def make_turns(*turns: str) -> list[dict[str, str]]:
    """Turns of user and assistant in turn, the first of which is named."""
    roles = {"s": "system", "u": "user", "a": "assistant"}
    return [{"role": roles[turn[0]], "content": turn[2:]} for turn in turns]


TALK = make_turns("u:Hi {n}", "a:Hello", "u:And {n}?")
SHAPES: dict[str, tuple[Any, str]] = {
    **STYLES,
    "a prompt of several turns": (
        {"prompt": TALK, "chosen": make_turns("a:good {n}"), "rejected": make_turns("a:bad")},
        "dpo",
    ),
    "a prompt that both repeat": (
        {"prompt": "And {n}?", "chosen": [*TALK, *make_turns("a:good {n}")], "rejected": [*TALK, *make_turns("a:bad")]},
        "orpo",
    ),
    "answers of several turns": (
        {
            "prompt": make_turns("s:Be brief.", "u:Q {n}?"),
            "chosen": make_turns("a:Which?", "u:This", "a:good {n}"),
            "rejected": make_turns("a:Which?", "u:This", "a:bad"),
        },
        "dpo",
    ),
    "answers that part early": (
        {
            "prompt": "Q {n}?",
            "chosen": make_turns("a:good", "u:So?", "a:good {n}"),
            "rejected": make_turns("a:bad", "u:So?", "a:bad {n}"),
        },
        "dpo",
    ),
    "no prompt but shared words": ({"chosen": "Say {n}: good {n}", "rejected": "Say {n}: bad"}, "dpo"),
    "a system column": ({"system": "Be brief.", "prompt": "Q {n}?", "chosen": "good {n}", "rejected": "bad"}, "dpo"),
    "reasoning": (
        {"prompt": "Q {n}?", "chosen": "<think>Hm {n}.</think>good", "rejected": "<think></think>bad"},
        "dpo",
    ),
    "input and instruction": (
        {"instruction": "Q {n}?", "input": "with this", "chosen": "good {n}", "rejected": "bad"},
        "dpo",
    ),
    "turns as text": ({"prompt": json.dumps(TALK), "completion": "good {n}", "label": False}, "kto"),
    "labels of several kinds": ({"prompt": "Q {n}?", "completion": "good {n}", "label": "{n}"}, "kto"),
    "ratings without a prompt": ({"completion": [*TALK, *make_turns("a:good {n}")], "label": True}, "kto"),
}


def lines_of(row: Any, count: int = 12) -> list[Any]:
    return [
        json.loads(json.dumps(row).replace("{n}", str(n % 2 if row.get("label") == "{n}" else n // 2)))
        for n in range(count)
    ]


def sequences_of_script(config, home) -> tuple[list, list]:
    names = names_of(config, home)
    options = argparse.Namespace(model=names["MODEL"], data=names["DATA"])
    train, held_out = names["prepare"](names["load_tokenizer"](options.model), options)
    return train, held_out


def prepare_script(config, home):
    tokenizer, _ = load_tokenizer(ModelSource(config.model.id, "tiny"))
    return prepare_dataset(
        config.dataset, seed=config.training.seed, max_length=config.training.max_length, tokenizer=tokenizer, home=home,
        objective=objective_of(config),
    )  # fmt: skip


def as_in_script(row: Any) -> dict[str, Any]:
    result = {"input_ids": row.input_ids, "labels": row.labels}
    if isinstance(row, TokenizedPair):
        return result | {"rejected_ids": row.rejected.input_ids, "rejected_labels": row.rejected.labels}
    assert isinstance(row, RatedRow)
    return result | {"desirable": row.desirable}


@pytest.mark.exhaustive(quick=2)
@pytest.mark.parametrize(("row", "objective"), SHAPES.values(), ids=SHAPES)
def test_a_script_makes_the_tokens_masks_and_split_of_the_run(row, objective, tiny_model_folder, home, tmp_path):
    source = str(write_lines(tmp_path / "rows.jsonl", lines_of(row)))
    format_ = {"format": "kto"} if row.get("label") == "{n}" else {}
    config = make_config(tiny_model_folder, source, {"objective": objective, "max_length": 400}, **format_)

    train, held_out = sequences_of_script(config, home)

    data = prepare_script(config, home)
    assert train == [as_in_script(one) for one in data.train]
    assert held_out == [as_in_script(one) for one in data.held_out]
    assert len(train) + len(held_out) == 12
    assert held_out


def test_rows_that_nothing_is_left_of_are_left_out_as_in_the_run(tiny_model_folder, home, tmp_path):
    rows = lines_of({"prompt": "Q {n}?", "chosen": "good {n}", "rejected": "bad"})
    odd = [
        {"prompt": "Same?", "chosen": "same", "rejected": "same"},
        {"prompt": "", "chosen": "good", "rejected": "bad"},
        {"prompt": "Empty?", "chosen": " ", "rejected": "bad"},
        {"prompt": "long " * 200, "chosen": "good", "rejected": "bad"},
        {"prompt": "Equal up to the cut?", "chosen": "long " * 200, "rejected": "long " * 201},
        "{broken\n",
    ]
    source = str(write_lines(tmp_path / "rows.jsonl", [*odd, *rows]))
    config = make_config(tiny_model_folder, source, {"objective": "dpo", "max_length": 64})

    train, held_out = sequences_of_script(config, home)

    data = prepare_script(config, home)
    assert data.report.dropped == 6
    assert train == [as_in_script(one) for one in data.train]
    assert held_out == [as_in_script(one) for one in data.held_out]


def test_ratings_that_nothing_is_left_of_are_left_out_as_in_the_run(tiny_model_folder, home, tmp_path):
    rows = lines_of({"prompt": "Q {n}?", "completion": "good {n}", "label": True})
    odd = [
        {"prompt": "", "completion": "kept all the same", "label": False},
        {"prompt": None, "completion": "no prompt", "label": True},
        {"prompt": "Empty?", "completion": "", "label": True},
        {"prompt": "No label?", "completion": "good", "label": None},
        {"prompt": "Which?", "completion": "good", "label": "maybe"},
        {"completion": "no column", "label": True},
    ]
    source = str(write_lines(tmp_path / "rows.jsonl", [*odd, *rows]))
    config = make_config(tiny_model_folder, source, {"objective": "kto", "max_length": 64}, format="kto")

    train, held_out = sequences_of_script(config, home)

    data = prepare_script(config, home)
    assert data.report.dropped == 5
    assert train == [as_in_script(one) for one in data.train]
    assert held_out == [as_in_script(one) for one in data.held_out]


def test_rows_that_share_one_prompt_are_trained_on_and_none_is_held_out(tiny_model_folder, home, tmp_path):
    rows = [{"prompt": "Q?", "completion": f"answer {n}", "label": True} for n in range(6)]
    config = make_config(
        tiny_model_folder, str(write_lines(tmp_path / "rows.jsonl", rows)), {"objective": "kto", "max_length": 64}
    )

    train, held_out = sequences_of_script(config, home)

    assert (len(train), held_out) == (6, [])
    assert len(prepare_script(config, home).held_out) == 0


def test_rows_that_a_script_would_read_otherwise_are_refused(tiny_model_folder, home, tmp_path):
    rows = lines_of({"prompt": "Q {n}?", "chosen": "good {n}", "rejected": "bad"})
    whole = {"prompt": "Q?", "chosen": [*TALK, *make_turns("a:good")], "rejected": [*TALK, *make_turns("a:bad")]}
    config = make_config(
        tiny_model_folder, str(write_lines(tmp_path / "rows.jsonl", [*rows, whole])), {"objective": "dpo"}
    )

    with pytest.raises(DatasetError, match="which a script cannot read"):
        names_of(config, home)


@pytest.mark.parametrize(
    ("batching", "strategy"), [("padded", "random"), ("padded", "group_by_length"), ("joined", "random")]
)
def test_the_mismatched_answers_of_a_step_are_those_of_the_run(
    batching, strategy, tiny_model_folder, home, tmp_path, monkeypatch
):
    rows = [{"prompt": f"Q {n}?", "completion": "good " * (1 + n * 7 % 9), "label": n % 3 > 0} for n in range(23)]
    training = {
        "objective": "kto", "max_length": 64, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2,
        "train_sampling_strategy": strategy,
    }  # fmt: skip
    config = make_config(tiny_model_folder, str(write_lines(tmp_path / "rows.jsonl", rows)), training)
    attention = "eager" if batching == "padded" else "auto"
    config = config.model_copy(update={"model": config.model.model_copy(update={"attn_implementation": attention})})
    names = names_of(config, home)
    options = argparse.Namespace(model=names["MODEL"], data=names["DATA"])
    train, _ = names["prepare"](names["load_tokenizer"](options.model), options)
    data = prepare_script(config, home)
    objective = TRAINING_OBJECTIVES["kto"](config.training)
    settings = PlanSettings(config.training, batching)
    taken: list[tuple[list[int], list[int]]] = []
    mismatched = objective.mismatched_sequence
    monkeypatch.setattr(
        objective, "mismatched_sequence", lambda *pair: taken.append((one := mismatched(*pair)).input_ids) or one
    )
    steps = StepBatches(data.train, TrainerSetup(settings, 0, objective=objective))

    for planned in EpochPlanner(data.train.lengths(), settings).steps(1):
        steps.__getitems__(planned)
    result = [row["kl_ids"] for batch in names["Batches"](train, lambda: 1) for row in batch]

    assert result == taken
