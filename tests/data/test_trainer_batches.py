"""The batches of the real trainer's loader hold, bit for bit, what `render` shows; and the chat's prompts begin them."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from loratory.engine.config.load import config_from_mapping
from loratory.engine.config.run import RunConfig
from loratory.engine.data.conversation import Conversation
from loratory.engine.data.passes.prepare import prepare_dataset
from loratory.engine.data.passes.reader import DatasetReader, Renderer
from loratory.engine.data.render.tokenize import IGNORED_LABEL, prompt_ids
from loratory.engine.data.source import SourceOptions
from tests.data.conversations import spans
from tests.data.families import FAMILIES, shared_tokenizer

MAX_LENGTH = 700

TURNS = [
    ("system", "Answer in one word."),
    ("user", "One?"),
    ("assistant", "Two."),
    ("user", "Three?"),
    ("assistant", "Four."),
]
SHAREGPT_ROLES = {"system": "system", "user": "human", "assistant": "gpt"}
CALLS = [
    {"from": "human", "value": "Which rank?"},
    {"from": "function_call", "value": '{"name": "find", "arguments": {"task": "chat"}}'},
    {"from": "observation", "value": '{"rank": 16}'},
    {"from": "gpt", "value": "Sixteen."},
]
TOOLS = json.dumps([{"name": "find", "description": "Finds", "parameters": {"type": "object", "properties": {}}}])

ROWS: dict[str, list[Any]] = {
    "alpaca": [
        {"instruction": f"Add {n}", "input": "to 1" if n % 2 else "", "output": str(n + 1) * n, "system": "Be exact."}
        for n in range(1, 9)
    ],
    "sharegpt": [
        *(
            {"conversations": [{"from": SHAREGPT_ROLES[role], "value": f"{text} {n}"} for role, text in TURNS]}
            for n in range(4)
        ),
        {"conversations": CALLS, "tools": TOOLS},
    ],
    "messages": [
        {"messages": [{"role": role, "content": f"{text} {n}"} for role, text in TURNS[: 3 + 2 * (n % 2)]]}
        for n in range(5)
    ],
    "prompt_completion": [{"prompt": f"Ask {n}", "completion": "\n Answer " * n} for n in range(1, 6)],
    "text": [{"text": f"Some words, {n}. " * n} for n in range(1, 6)],
}


BATCHINGS = {"packed": (True, "joined"), "joined": (False, "joined"), "padded": (False, "padded")}


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("formats")
    for name, rows in ROWS.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {name: folder / f"{name}.jsonl" for name in ROWS}


@pytest.fixture(scope="module")
def trainer_of(tmp_path_factory):
    """Return a function that builds the real trainer around a model of one tiny layer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from loratory.engine.data.step_plan import PlanSettings
    from loratory.engine.models.source import ModelSource
    from loratory.engine.training.batching.steps import TrainerRows, TrainerSetup
    from loratory.engine.training.build import add_adapter, training_arguments
    from loratory.engine.training.callbacks import TrainerHooks
    from loratory.engine.training.loops.supervised import SupervisedLoop
    from loratory.engine.training.placement import choose_placement, choose_precision

    def build(config: RunConfig, tokenizer, prepared, batching):
        torch.manual_seed(0)
        shape = AutoConfig.for_model(
            "llama",
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
        )
        model = AutoModelForCausalLM.from_config(shape)
        source = ModelSource(location="tiny", name="tiny")
        model = add_adapter(model, config, source)
        placement = choose_placement(config)
        precision = choose_precision(config, placement.device)
        args = training_arguments(config.training, tmp_path_factory.mktemp("trainer"), precision, placement)
        at_random = config.training.model_copy(update={"train_sampling_strategy": "random"})
        settings = PlanSettings(at_random, batching)
        rows = TrainerRows(prepared.train, prepared.train.lengths(), prepared.held_out)
        setup = TrainerSetup(settings, tokenizer.pad_token_id)
        return SupervisedLoop(model, args, tokenizer, rows, setup, TrainerHooks())

    return build


def rows_in(pass_tensors) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Split the tensors of a pass into (input_ids, labels) of each row."""
    input_ids = pass_tensors.inputs["input_ids"]
    labels = [IGNORED_LABEL] * input_ids.numel()
    for position, target in zip(
        pass_tensors.trained.positions.tolist(), pass_tensors.trained.targets.tolist(), strict=True
    ):
        labels[position + 1] = target
    if "attention_mask" in pass_tensors.inputs:
        starts = [number * input_ids.shape[1] for number in range(input_ids.shape[0])]
        ends = [
            start + int(mask.sum()) for start, mask in zip(starts, pass_tensors.inputs["attention_mask"], strict=True)
        ]
    else:
        positions = pass_tensors.inputs["position_ids"].flatten().tolist()
        starts = [index for index, position in enumerate(positions) if position == 0]
        ends = [*starts[1:], len(positions)]
        rows = [(start, end) for start, end in zip(starts, ends, strict=True) if start < pass_tensors.tokens]
        starts, ends = [start for start, _ in rows], [end for _, end in rows]  # what follows only fills up
    flat = input_ids.flatten().tolist()
    return [(tuple(flat[start:end]), tuple(labels[start:end])) for start, end in zip(starts, ends, strict=True)]


@pytest.mark.exhaustive(quick=3)
@pytest.mark.parametrize(
    ("name", "batch"),
    [*(("qwen3", batch) for batch in BATCHINGS), *((member.name, "joined") for member in FAMILIES[1:])],
)
def test_the_loader_gives_what_render_shows_of_every_format(name, batch, files, home, trainer_of):
    tokenizer = shared_tokenizer(name)
    packing, batching = BATCHINGS[batch]
    first, *others = files.values()
    config = config_from_mapping(
        {
            "model": {"id": "tiny"},
            "dataset": {"source": str(first), "mix": {str(file): 1.0 for file in others}, "eval_fraction": 0.2},
            "training": {
                "max_length": MAX_LENGTH,
                "packing": packing,
                "per_device_train_batch_size": 2,
                "gradient_accumulation_steps": 2,
            },
            "run": {"devices": "cpu"},
        }
    )
    data = prepare_dataset(
        config.dataset, seed=config.training.seed, max_length=MAX_LENGTH, tokenizer=tokenizer, home=home
    )

    loader = trainer_of(config, tokenizer, data, batching).get_train_dataloader()
    loader_rows = Counter(row for step in loader for forward_pass in step.passes for row in rows_in(forward_pass))

    reader = DatasetReader(config.dataset, SourceOptions(), Renderer(tokenizer, MAX_LENGTH))
    views = {}
    for dataset_row in reader.rows():
        assert dataset_row.rendering is not None, dataset_row.problem
        for sequence in dataset_row.rendering.rows:
            views[sequence.row, sequence.part] = (tuple(sequence.input_ids), tuple(sequence.labels))
        if isinstance(dataset_row.example, Conversation):
            check_prompts(dataset_row.example, dataset_row.rendering.rows, tokenizer)
    held_out = {(row.row, row.part) for row in data.held_out}
    assert loader_rows == Counter(row for key, row in views.items() if key not in held_out)
    assert held_out
    assert [part.format for part in data.report.parts] == list(ROWS)


def check_prompts(conversation, rows, tokenizer):
    """Check that each trained answer follows exactly the prompt that the chat would send."""
    prompts = Counter(
        tuple(prompt_ids(conversation.messages[:index], tokenizer, conversation.tools))
        for index, message in enumerate(conversation.messages)
        if message.role == "assistant"
    )
    begins = Counter(tuple(row.input_ids[:start]) for row in rows for start, _ in spans(row))
    assert begins == prompts
