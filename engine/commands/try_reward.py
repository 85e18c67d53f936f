"""`loratory try-reward`: what the model earns before any training, what bad answers earn, and whether a run can learn."""

from collections.abc import Iterator
from typing import Annotated, Any

import typer

from loratory.engine.commands.output import AsJson, ConfigName, Overrides, print_result, setting_options, with_progress
from loratory.engine.config.derived_defaults import planned_steps
from loratory.engine.config.load import section_from_mapping
from loratory.engine.config.objectives import objective_of
from loratory.engine.config.run import SET_PREFIX, RunConfig
from loratory.engine.data.workshop.exchange import set_from
from loratory.engine.data.workshop.sets import find_set, find_version, pinned
from loratory.engine.errors import ConfigError, Problem, shorten
from loratory.engine.evaluation.samples import PromptSamples
from loratory.engine.evaluation.try_reward import TryRewardConfig, TryRewardJob, TryRewardResult, judge
from loratory.engine.interface.names import load_config
from loratory.engine.paths import LoratoryHome, local_owner
from loratory.engine.quantities import duration
from loratory.engine.runs.disk import require_disk_space


@setting_options(TryRewardConfig, prompts="--prompts")
def try_reward(
    config: ConfigName,
    settings: dict[str, Any],
    answers: Annotated[int, typer.Option("--show", min=0, max=500, help="Prompts whose answers are printed.")] = 3,
    all_prompts: Annotated[bool, typer.Option("--all-prompts", help="Answer all training prompts.")] = False,
    keep_sometimes: Annotated[
        bool,
        typer.Option(
            "--keep-sometimes",
            help="Keep the prompts that were sometimes right, neither always nor never: the other training rows are excluded "
            "from the set, or from a new set where the dataset is none.",
        ),
    ] = False,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Let the model answer training prompts, score the answers and bad ones, and report whether a run can learn."""
    home = LoratoryHome.from_environment()
    run = load_config(config, overrides, home)
    if not objective_of(run).samples_answers:
        message = f"{objective_of(run).label} learns from the rows, not from rewards; set it to grpo."
        raise ConfigError([Problem("training.objective", message)])
    if keep_sometimes and run.dataset.mix:
        raise ConfigError([Problem("dataset.mix", "rows of a mixture are in several datasets; filter each alone.")])
    tried = TryRewardConfig(prompts=None) if all_prompts else section_from_mapping(TryRewardConfig, settings)
    result = with_progress(TryRewardJob(home, run, tried).run)
    verdict, lines = judge(result), [*_report(result, run, answers)]
    values = result.model_dump(mode="json") | {"verdict": verdict._asdict(), "facts": result.facts(run)}
    values["judging"] = cost._asdict() if (cost := result.judging_cost(run, planned_steps(run, None) or 1)) else None
    if keep_sometimes:
        values["kept"] = selection = _keep(home, run, result)
        lines.append(
            f"\nKept {selection['prompts']:,} of {result.train_prompts:,} prompts. Next: --set dataset.source={selection['train_on']}"
        )
    print_result(values, "\n".join(lines), as_json=as_json)


def _keep(home: LoratoryHome, run: RunConfig, result: TryRewardResult) -> dict[str, Any]:
    """Exclude what was not sometimes right from the set of a run, or from a new one; return what to train on."""
    owner, source = home.owner or local_owner(), run.dataset.source.strip()
    result.keep_sometimes(1)  # before a set is made for nothing
    require_disk_space(home, owner)
    if source.startswith(SET_PREFIX):
        dataset = find_set(home, find_version(home, source).name)
    else:
        dataset = set_from(
            home, run.dataset, author=owner, require_space=lambda size: require_disk_space(home, owner, size)
        )
    entries = dataset.append(result.keep_sometimes(dataset.facts.rows), since=None, author=owner)
    train_on = f"{SET_PREFIX}{dataset.name}"
    return {"train_on": train_on, "version": pinned(train_on, home).partition("@")[2],
            "prompts": len(result.sometimes_right), "operations": [entry.id for entry in entries]}  # fmt: skip


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
    if (cost := result.judging_cost(run, steps or 1)) is not None:
        yield f"{'judge':>14}  {cost} in {f'{steps:,} steps' if steps else 'a step'}"
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
