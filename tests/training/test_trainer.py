"""The trainer has the losses of the plain script, however rows are batched, and continues where it stopped."""

from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM
from trl import SFTConfig, SFTTrainer

from loratory.engine.data.step_plan import PlanSettings
from loratory.engine.training.batching.steps import choose_rows
from loratory.engine.training.callbacks import TrainerHooks
from tests.training.preference_rows import train_with_trl
from tests.training.tiny_training import load_adapted, make_config, make_rows, make_training, train_tiny

ROWS = make_rows(13)
HELD_OUT = make_rows(5, seed=1)


def plain_losses(config, trainer, folder):
    """Return the losses of TRL's own trainer on the same rows in the same steps."""
    torch.manual_seed(config.training.seed)
    model, _ = load_adapted(config, base=AutoModelForCausalLM.from_pretrained(config.model.id, dtype=torch.float32))
    order = [row for epoch in range(2) for s in trainer._planner.steps(epoch) for p in s.passes for row in p.rows]
    rows = [{"input_ids": ROWS[row].input_ids, "labels": ROWS[row].labels} for row in order]
    names = ("learning_rate", "lr_scheduler_type", "warmup_steps", "seed")
    settings = {name: getattr(config.training, name) for name in names}
    steps, _ = train_with_trl(
        SFTTrainer, SFTConfig, model, rows, folder, per_device_train_batch_size=4, max_steps=4, **settings
    )
    return [step["loss"] for step in steps]


@pytest.mark.parametrize("batching", ["joined", "padded"])
def test_losses_are_those_of_the_plain_script(tiny_model_folder, tmp_path, batching):
    # Eight rows, so both trainers divide epochs alike.
    rows = ROWS[:8]
    attention = "auto" if batching == "joined" else "eager"
    config = make_config(
        tiny_model_folder,
        model={"attn_implementation": attention},
        training={"num_train_epochs": 2, "max_steps": 4},
    )
    training = make_training(config, rows, tmp_path)
    assert training.assembly.setup.settings.batching == batching
    training.trainer.train()

    expected = plain_losses(config, training.trainer, tmp_path / "plain")

    assert training.losses == pytest.approx(expected, rel=1e-4)
    assert training.losses[-1] < training.losses[0]


def test_packed_rows_have_the_losses_of_unpacked_ones(tiny_model_folder, tmp_path):
    """One step over all rows: the same sum, whichever sequence a row stands in."""
    one_step = {"max_steps": 1, "per_device_train_batch_size": 13, "gradient_accumulation_steps": 1}
    losses = {}
    for packing in (False, True):
        config = make_config(tiny_model_folder, training=one_step | {"packing": packing})
        training = train_tiny(config, ROWS, tmp_path)
        losses[packing] = training.steps[0]

    assert losses[True].loss == pytest.approx(losses[False].loss, rel=1e-5)
    assert losses[True].grad_norm == pytest.approx(losses[False].grad_norm, rel=1e-4)
    assert losses[True].trained_tokens == losses[False].trained_tokens


def test_how_a_step_is_divided_into_passes_does_not_change_it(tiny_model_folder, tmp_path):
    results = []
    for batch, accumulation in ((4, 1), (1, 4)):
        sizes = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
        training = train_tiny(make_config(tiny_model_folder, training=sizes), ROWS, tmp_path)
        results.append(training.losses)

    assert results[1] == pytest.approx(results[0], rel=1e-4)


def test_steps_count_tokens(tiny_model_folder, tmp_path):
    training = train_tiny(make_config(tiny_model_folder), ROWS, tmp_path)

    assert training.trainer.total_steps == len(training.steps) == 8  # 13 rows, four a step, two epochs
    assert training.steps[-1].tokens == 2 * sum(len(row.input_ids) for row in ROWS)
    assert training.steps[-1].trained_tokens == 2 * sum(label != -100 for row in ROWS for label in row.labels[1:])
    assert [step.step for step in training.steps] == list(range(1, 9))
    assert training.steps[-1].epoch == pytest.approx(2.0)


def test_the_held_out_loss_is_a_mean_over_tokens(tiny_model_folder, tmp_path):
    training = make_training(make_config(tiny_model_folder), ROWS, tmp_path, held_out=HELD_OUT)
    model = AutoModelForCausalLM.from_pretrained(tiny_model_folder, dtype=torch.float32)
    total = tokens = 0.0
    with torch.no_grad():
        for row in HELD_OUT:
            labels = torch.tensor([row.labels])
            count = int((labels[:, 1:] != -100).sum())
            total += float(model(torch.tensor([row.input_ids]), labels=labels).loss) * count
            tokens += count

    measurement = training.trainer.measure_held_out()

    assert measurement.eval_tokens == tokens
    assert measurement.rows == len(HELD_OUT)
    assert measurement.eval_loss == pytest.approx(total / tokens, rel=1e-5)


class Lengths(list[int]):
    """Rows of a dataset, by their lengths alone."""

    def lengths(self):
        return self


def test_measuring_costs_little_also_where_max_steps_ends_a_run_early():
    data = SimpleNamespace(train=Lengths([40] * 20_000), held_out=Lengths([40] * 20_000))

    def measured(**training):
        return len(choose_rows(data, PlanSettings(make_config("m", training=training).training)).held_out)

    assert measured() * 40 == pytest.approx(0.03 * 2 * 20_000 * 40, rel=0.01)  # two epochs
    assert measured(max_steps=3) == 16_384 // 40


def test_measuring_does_not_change_the_training(tiny_model_folder, tmp_path):
    config = make_config(tiny_model_folder, adapter={"lora_dropout": 0.2})
    plain = train_tiny(config, ROWS, tmp_path)
    hooks = TrainerHooks()
    measuring = make_training(config, ROWS, tmp_path, held_out=HELD_OUT, hooks=hooks)
    previous = hooks.on_logged
    hooks.on_logged = lambda step: (measuring.trainer.measure_held_out(), previous(step))  # type: ignore[assignment]
    measuring.trainer.train()

    assert measuring.losses == plain.losses


# Each method on its own resumes in test_methods.
RESUMABLE = {
    "LoRA with dropout": {"adapter": {"lora_dropout": 0.1}},
    "packing": {"training": {"packing": True, "num_train_epochs": 4}, "adapter": {"lora_dropout": 0.1}},
    "padded rows grouped by length": {
        "model": {"attn_implementation": "eager"},
        "training": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 1},
        "adapter": {"lora_dropout": 0.1},
    },
    "padded rows at random": {
        "model": {"attn_implementation": "eager"},
        "training": {"train_sampling_strategy": "random"},
        "adapter": {"lora_dropout": 0.1},
    },
    "bfloat16": {"model": {"compute_dtype": "bfloat16"}, "adapter": {"lora_dropout": 0.1}},
    "DoRA and rsLoRA": {"adapter": {"use_dora": True, "use_rslora": True, "lora_dropout": 0.1}},
    "checkpointing": {"training": {"gradient_checkpointing": True}, "adapter": {"lora_dropout": 0.1}},
    "modules_to_save": {"adapter": {"modules_to_save": ["embed_tokens"], "target_modules": ["q_proj"]}},
    "all biases": {"adapter": {"bias": "all"}},
}


QUICK = ("LoRA with dropout", "packing", "padded rows grouped by length")


@pytest.mark.parametrize(
    "sections",
    [pytest.param(values, marks=() if name in QUICK else pytest.mark.e2e) for name, values in RESUMABLE.items()],
    ids=RESUMABLE.keys(),
)
def test_a_saved_run_continues_bit_by_bit(tiny_model_folder, tmp_path, sections):
    config = make_config(tiny_model_folder, **sections)
    hooks, saved = TrainerHooks(), tmp_path / "saved"
    whole = make_training(config, ROWS, tmp_path, hooks=hooks)
    total = whole.trainer.total_steps
    save_at, previous = total // 2, hooks.on_logged

    def save(step):
        previous(step)
        if step.step == save_at:
            saved.mkdir()
            whole.trainer.write_state(saved, whole.trainer.gather_state())

    hooks.on_logged = save
    whole.trainer.train()
    torch.manual_seed(12345)  # a new process has other random numbers
    resumed = make_training(config, ROWS, tmp_path)
    torch.manual_seed(54321)
    resumed.trainer.train(resume_from_checkpoint=str(saved))

    assert [step.step for step in resumed.steps] == list(range(save_at + 1, total + 1))
    assert resumed.losses == whole.losses[save_at:]
    assert [s.grad_norm for s in resumed.steps] == [s.grad_norm for s in whole.steps[save_at:]]
    assert resumed.steps[-1].tokens == whole.steps[-1].tokens
    for name, weights in whole.weights().items():
        assert torch.equal(weights, resumed.weights()[name]), name


def test_trained_weights_are_float32_also_on_quantized_bases(tiny_model_folder, tmp_path):
    config = make_config(tiny_model_folder, model={"quantization": "nf4", "compute_dtype": "bfloat16"})
    training = train_tiny(config, ROWS, tmp_path)

    after = training.weights().values()
    assert {weights.dtype for weights in after} == {torch.float32}
    assert not any(torch.equal(weights, weights.bfloat16().float()) for weights in after)  # nor rounded on the way


def test_measuring_leaves_quantized_weights_alone(tiny_model_folder, tmp_path):
    config = make_config(tiny_model_folder, model={"quantization": "nf4", "compute_dtype": "bfloat16"})
    training = make_training(config, ROWS, tmp_path, held_out=HELD_OUT)
    packed = {n: p.detach().clone() for n, p in training.trainer.model.named_parameters() if not p.requires_grad}

    first = training.trainer.measure_held_out()
    training.trainer.train()

    for name, parameter in training.trainer.model.named_parameters():
        if name in packed:
            assert torch.equal(parameter, packed[name]), name
    assert first.eval_loss > 0
