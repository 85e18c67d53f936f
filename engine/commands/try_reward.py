"""`loratory try-reward`: what the model earns before any training, what bad answers earn, and whether a run can learn."""

from collections.abc import Iterator
from typing import Annotated, Any

import typer

from loratory.engine.commands.configs import load_config_argument
from loratory.engine.commands.output import AsJson, ConfigName, Overrides, print_result, setting_options, with_progress
from loratory.engine.config.derived_defaults import planned_steps
from loratory.engine.config.load import section_from_mapping
from loratory.engine.config.objectives import objective_of
from loratory.engine.config.run import RunConfig
from loratory.engine.errors import ConfigError, Problem, shorten
from loratory.engine.evaluation.samples import PromptSamples
from loratory.engine.evaluation.try_reward import TryRewardConfig, TryRewardJob, TryRewardResult, judge
from loratory.engine.paths import LoratoryHome
from loratory.engine.quantities import duration


@setting_options(TryRewardConfig, prompts="--prompts")
def try_reward(
    config: ConfigName,
    settings: dict[str, Any],
    answers: Annotated[int, typer.Option("--show", min=0, max=500, help="Prompts whose answers are printed.")] = 3,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Let the model answer training prompts, score the answers and bad ones, and report whether a run can learn."""
    home = LoratoryHome.from_environment()
    run = load_config_argument(config, overrides, home)
    if not objective_of(run).samples_answers:
        message = f"{objective_of(run).label} learns from the rows, not from rewards; set it to grpo."
        raise ConfigError([Problem("training.objective", message)])
    job = TryRewardJob(home, run, section_from_mapping(TryRewardConfig, settings))
    result = with_progress(job.run)
    verdict = judge(result)
    values = result.model_dump(mode="json") | {"verdict": verdict._asdict(), "facts": result.facts(run)}
    print_result(values, "\n".join(_report(result, run, answers)), as_json=as_json)


def _report(result: TryRewardResult, run: RunConfig, answers: int) -> Iterator[str]:
    verdict, steps = judge(result), planned_steps(run, None)
    yield f"{verdict.title}. {verdict.reason}"
    yield from (f"  {cure}" for cure in verdict.cures)
    yield ""
    for name, value in result.facts(run).items():
        text = duration(value) if name.endswith("_seconds") else f"{value:.3g}"
        yield f"{name.removesuffix('_seconds').replace('_', ' '):>14}  {text}"
    if steps:
        yield f"{'run':>14}  about {duration(steps * result.step_seconds(run))} for {steps:,} steps"
    yield "\nDeliberately bad answers earn:"
    for bad in result.bad_answers:
        yield f"{'–' if bad.reward is None else f'{bad.reward:.2f}':>14}  {bad.name}"
    yield from result.notes
    for prompt in result.prompts[:answers]:
        yield from _answers(prompt)


def _answers(prompt: PromptSamples) -> Iterator[str]:
    yield f"\nrow {prompt.row + 1:,}: {shorten(' '.join(prompt.prompt.split()), 100)}"
    for answer in sorted(prompt.answers, key=lambda answer: -(answer.reward or 0.0)):
        cut = " (cut)" if answer.is_cut else ""
        reward = "–" if answer.reward is None else f"{answer.reward:.2f}"
        yield f"{reward:>14}  {shorten(' '.join(answer.text.split()), 100)}{cut}"


COMMANDS = (try_reward,)
