"""GRPO is TRL's: the loss and gradients of the same answers, and advantages of the same rewards."""

import copy
from dataclasses import replace

import pytest
import torch
from datasets import Dataset
from transformers import AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

from loratory.engine.data.render.tokenize import IGNORED_LABEL
from loratory.engine.training.methods.registry import method_trainer  # noqa: F401 - before PEFT patches
from loratory.engine.training.objectives.grpo import group_advantages
from loratory.engine.training.ops.loss import causal_lm_of
from tests.training.rollout_rows import make_answers, make_prompts, make_rollouts

pytestmark = pytest.mark.e2e
PROMPTS, COPIES = 4, 4
METRICS = ("kl", "clip_ratio/low_mean", "clip_ratio/high_mean", "clip_ratio/region_mean")


def log_probabilities(training, answers):
    """Return those of each answer's tokens, by the model as it is."""
    loop = training.trainer
    return [answer.old for answer in loop._with_old(tuple(answers))]


def disturb(training, scale):
    """Move the adapter away from the base, by the same random numbers each time."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in training.trainer.model.parameters():
            if weight.requires_grad:
                weight.add_(scale * torch.randn(weight.shape, generator=generator))


def trl_trainer(model, folder, **settings):
    """Build TRL's trainer on a model."""
    tokenizer = AutoTokenizer.from_pretrained(causal_lm_of(model).config._name_or_path)
    args = GRPOConfig(
        output_dir=str(folder), report_to="none", use_cpu=True, bf16=False, gradient_checkpointing=False, disable_tqdm=True,
        per_device_train_batch_size=PROMPTS * COPIES, num_generations=COPIES, max_completion_length=12, **settings,
    )  # fmt: skip
    return GRPOTrainer(
        model=model, args=args, train_dataset=Dataset.from_dict({"prompt": ["a"] * PROMPTS}), processing_class=tokenizer,
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
    )  # fmt: skip


def trl_inputs(answers, old, reference, pad):
    """Return a batch as TRL's `_compute_loss` takes it: prompts padded on the left, answers on the right."""
    prompts = [[i for i, label in zip(a.input_ids, a.labels, strict=True) if label == IGNORED_LABEL] for a in answers]
    tokens = [a.input_ids[len(prompt) :] for a, prompt in zip(answers, prompts, strict=True)]
    width, longest = max(map(len, prompts)), max(map(len, tokens))

    def right(rows, fill):
        return torch.tensor([[*row, *[fill] * (longest - len(row))] for row in rows])

    mask = right([[1] * len(row) for row in tokens], 0)
    return {
        "prompt_ids": torch.tensor([[*[pad] * (width - len(p)), *p] for p in prompts]),
        "prompt_mask": torch.tensor([[*[0] * (width - len(p)), *[1] * len(p)] for p in prompts]),
        "completion_ids": right(tokens, pad),
        "completion_mask": mask,
        "advantages": torch.tensor([a.advantage for a in answers]),
        "num_items_in_batch": mask.sum(),
        **({"old_per_token_logps": right(old, 0.0)} if old else {}),
        **({"ref_per_token_logps": right(reference, 0.0)} if reference else {}),
    }


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("beta", [0.0, 0.04])
@pytest.mark.parametrize("iterations", [1, 2])
@pytest.mark.parametrize("loss_type", ["dapo", "grpo", "bnpo", "dr_grpo"])
def test_loss_and_gradients_are_those_of_trl(loss_type, iterations, beta, temperature, tiny_model_folder, tmp_path):
    settings = {"beta": beta, "temperature": temperature, "epsilon_high": 0.3, "num_iterations": iterations}
    rows = make_prompts(PROMPTS)
    ours = make_rollouts(
        tiny_model_folder,
        tmp_path / "ours",
        rows,
        training={"loss_type": [loss_type], "gradient_accumulation_steps": 2, **settings},
    )
    loop = ours.trainer
    answers = make_answers(rows, COPIES)
    with loop.model.disable_adapter():
        reference = log_probabilities(ours, answers) if beta else []
    disturb(ours, 0.1)
    old = log_probabilities(ours, answers)
    answers = [replace(answer, sampled=values) for answer, values in zip(answers, old, strict=True)]
    if iterations > 1:
        answers = [replace(answer, old=values) for answer, values in zip(answers, old, strict=True)]
        disturb(ours, 0.1)
    model = copy.deepcopy(loop.model)
    for module in model.modules():
        vars(module).pop("forward", None)
    model.get_base_model().set_attn_implementation("eager")

    loss = loop._train_step(loop.model, loop._passes_of(answers))

    theirs = trl_trainer(model, tmp_path / "trl", loss_type=loss_type, epsilon=0.2, **settings)
    theirs.model.train()
    theirs.current_gradient_accumulation_steps = 1
    batch = trl_inputs(answers, old if iterations > 1 else [], reference, theirs.processing_class.pad_token_id)
    expected = theirs._compute_loss(theirs.model, batch)
    expected.backward()
    assert float(loss) == pytest.approx(float(expected), rel=1e-4, abs=1e-6)
    gradients = {name: p.grad for name, p in theirs.model.named_parameters() if p.grad is not None}
    own = {name: p.grad for name, p in loop.model.named_parameters() if p.grad is not None}
    assert own.keys() == gradients.keys()
    for name, gradient in gradients.items():
        assert own[name].sub(gradient).norm() <= 1e-4 * gradient.norm() + 1e-7, name
    metrics = loop._passes.means(loop._interval.metrics)
    for name in METRICS:
        if name in theirs._metrics["train"]:
            assert metrics[name] == pytest.approx(theirs._metrics["train"][name][0], rel=1e-3, abs=1e-5), name
    assert (iterations == 1) == (metrics["clip_ratio/region_mean"] == 0)  # the clipped case is among those above


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_advantages_are_those_of_trl(scale, tiny_model_folder, tmp_path):
    generator = torch.Generator().manual_seed(0)
    rewards = torch.rand(PROMPTS, COPIES, generator=generator)
    rewards[1] = 0.5  # a group without spread
    rewards[2, 1] = torch.nan  # an answer without a reward
    trainer = make_rollouts(tiny_model_folder, tmp_path / "ours", make_prompts(PROMPTS)).trainer
    theirs = trl_trainer(copy.deepcopy(trainer.model).unload(), tmp_path / "trl", scale_rewards=scale)
    values = [None if value != value else value for value in rewards.flatten().tolist()]
    theirs.reward_funcs = [lambda **_: values]
    ids = [[11, 12]] * (PROMPTS * COPIES)
    theirs._generate = lambda prompts: (ids, ids, None, ["a"] * len(prompts), None, {}, None, None)
    theirs.model.train()

    expected = theirs._generate_and_score_completions([{"prompt": "a"} for _ in ids])["advantages"]
    advantages, is_tied = group_advantages(rewards, scale)

    torch.testing.assert_close(advantages.flatten(), expected, rtol=1e-4, atol=1e-5)
    assert is_tied.float().mean().item() == pytest.approx(theirs._metrics["train"]["frac_reward_zero_std"][0])
