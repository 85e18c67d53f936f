"""Write a run as a script for transformers, PEFT, TRL and datasets, without Loratory.

The short form reads the raw data like the usual tutorials, and lists its differences from the run. The exact form, a folder
with `train.py` and `rows.parquet`, repeats the run's losses; `loratory.engine.export.worker.script` writes it.
"""

import json
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from loratory.engine.config.objectives import preference_name
from loratory.engine.config.run import RunConfig
from loratory.engine.data.contract import RowForm
from loratory.engine.errors import DatasetError, RunError
from loratory.engine.export.script.facts import ScriptFacts
from loratory.engine.export.script.model_facts import read_model_facts
from loratory.engine.export.script.rewards import write_rewards
from loratory.engine.paths import LoratoryHome
from loratory.engine.runs.history.run_history import read_history
from loratory.engine.runs.provenance import environment_facts, read_provenance, run_title
from loratory.engine.runs.run import RunFolder

_TEMPLATES = Path(__file__).with_name("templates")
_WIDTH = 100
_TEMPLATE_OF_TODAY = "the chat template is the model's own at this day; the run's is frozen, with a fixed date"


def gather_script_facts(config: RunConfig, home: LoratoryHome, run: RunFolder | None = None) -> ScriptFacts:
    """Collect the facts of the model and of the run, if there is one.

    Raises:
        ModelError: If the model is a path that does not exist.
    """
    libraries = (read_provenance(run).libraries if run is not None else None) or environment_facts()["libraries"]
    assert isinstance(libraries, dict)
    title = run_title(config)
    return ScriptFacts(
        config=config,
        model=read_model_facts(config, home, run),
        title=title,
        output=re.sub(r"[^A-Za-z0-9._-]+", "-", title).strip("-.")[:80] or "output",
        origin=f"the run {run.path.name}" if run is not None else "a run in Loratory",
        argument=run.path.name if run is not None else "CONFIG",
        versions=", ".join(f"{name} {version}" for name, version in libraries.items()),
        results=tuple(_results(run)) if run is not None else (),
    )


def write_short_script(facts: ScriptFacts, rows: RowForm) -> str:
    """Return the short form as text.

    Raises:
        DatasetError: If rewards are learned, and rows are plain text.
        RunError: If a reward has no code that runs without Loratory.
    """
    _require_expressible_images(facts, rows)
    samples = facts.objective.samples_answers
    if samples and rows.text_column is not None:
        what = "Plain text has no prompts to answer."
        raise DatasetError(what, "Choose rows with prompts, or training.objective sft.")
    rewards = write_rewards(facts.config.training.rewards if samples else ())
    exact = (
        ""
        if samples or facts.model.family is not None
        else f"; `loratory script {facts.argument} --exact FOLDER` repeats its losses"
    )
    head = [
        f"{facts.title}: {preference_name(facts.config) or facts.config.method_name} with transformers, PEFT and TRL.",
        "",
        f"    pip install {facts.packages}{rewards.packages}",
        "",
        f"Differs from {facts.origin}{exact}:",
        *(f"- {difference}" for difference in (_left_out_of_rewards if samples else _left_out)(facts, rows)),
        *(f"- {difference}" for difference in _left_out_of_all(facts, rows)),
    ]
    return render("short", facts=facts, rows=rows, rewards=rewards, head="\n".join(head))


def _require_expressible_images(facts: ScriptFacts, rows: RowForm) -> None:
    """Refuse what plain TRL and transformers' processors do not do as a run with images does."""
    family, vision = facts.model.family, facts.config.vision
    if family is None and not rows.image_column:
        return
    own = [name for name in family.settings if name not in family.processor_arguments] if family is not None else []
    reasons = [
        *(f"vision.{name} is not an argument of its processor" for name in own if getattr(vision, name) is not None),
        *(["what sees images is trained"] if vision.trains_part or facts.traits.trains_all else []),
        *(["TRL does not compute the reference of rows with images in advance"] if facts.precomputes_reference else []),
        *(["the model is not on this machine, or takes no images"] if family is None else []),
    ]
    if reasons:
        what = f"This run has no script, because {' and '.join(reasons)}."
        raise RunError(what, "Take the configuration instead (--yaml), and run it with `loratory train`.")


def exact_head(facts: ScriptFacts, differences: Sequence[str]) -> str:
    """Return the docstring of an exact script: what it is, how to run it, and any differences from the run."""
    what = " with ".join(filter(None, (preference_name(facts.config), facts.config.method_name)))
    lines = [
        f"{facts.title}: {what} on plain transformers, PEFT, TRL and datasets.",
        "",
        f"Written by Loratory for {facts.origin}, with its tokenized rows in rows.parquet; it does not need Loratory.",
        "",
        f"    pip install {facts.packages}",
        "    python train.py [--model HUB_ID_OR_FOLDER] [--output FOLDER]",
        "",
        f"Versions: {facts.versions}.",
        *facts.results,
    ]
    if differences:
        lines += ["", "Differences from the run:", *(f"- {difference}" for difference in differences)]
    return "\n".join(lines)


def differences_of(facts: ScriptFacts) -> Iterator[str]:
    """Yield a sentence about each difference between an exact script and the run."""
    config, traits = facts.config, facts.traits
    training, adapter = config.training, config.adapter
    has_dropout = traits.has_dropout(adapter) and not (facts.objective.learns_preferences and training.disable_dropout)
    if has_dropout:
        yield "Dropout draws other random numbers than the run did, so losses differ by chance."
    if facts.objective.has_reference and "bias" in traits.fields and adapter.bias != "none":
        yield "The reference has the biases as they are trained, in the run those that training started with."
    if not traits.starts_as_identity and facts.measures:
        yield "The evaluation before the first step is of the base model, as in the run."
    if training.early_stopping_patience is not None or training.load_best_model_at_end:
        yield "Checkpoints are saved at every evaluation, because transformers can only restore saved ones."
    if config.run.launcher == "accelerate":
        also_weights = " and the weights (FSDP2)" if config.run.fsdp != "none" else ""
        yield f"It trains in one process; the run was started by Accelerate, whose processes shared each step{also_weights}."


def _left_out(facts: ScriptFacts, rows: RowForm) -> Iterator[str]:
    yield "rows are held out at random and in TRL's order, so losses differ"
    if facts.model.family is not None:
        yield "rows longer than max_length are kept whole; transparent images are not put on white; white space is trained"
    if facts.objective.learns_preferences:
        yield "pairs with one prompt are not kept together where rows are held out"
    elif rows.text_column is None:
        yield _TEMPLATE_OF_TODAY
        if rows.most_answers > 1 and facts.config.dataset.train_on != "last_assistant":
            yield "of a conversation, the last answer alone is trained"
    if facts.estimates_kl:
        yield "the KL is estimated over each batch of rows as they follow one another, in the run over each step"
    if rows.has_reasoning:
        yield "reasoning is trained as the rows have it; in the run, the chat template places it"


def _left_out_of_rewards(facts: ScriptFacts, rows: RowForm) -> Iterator[str]:
    yield "prompts are held out at random and in TRL's order, and answers are other samples, so rewards differ"
    yield "prompts that do not fill the last step of an epoch are left out"
    if facts.measures:
        yield "held-out prompts are answered by sampling, in the run by the likeliest tokens"
    yield "the rounding of probabilities at sampling is not corrected"
    if "bnpo" in facts.objective.losses_of(facts.config):
        yield "bnpo averages over the tokens of each batch, in the run over those of each step"
    yield _TEMPLATE_OF_TODAY
    yield "`load_dataset` gives columns a type: where a column looks like numbers or dates, texts such as 007 become these"
    if rows.has_reasoning:
        yield "reasoning is a part of answers, also in the column answer; in the run, the chat template places it"
    if any(scorer.scorer == "file" for scorer in facts.config.training.rewards):
        yield "the file that scores answers runs without a sandbox"


def _left_out_of_all(facts: ScriptFacts, rows: RowForm) -> Iterator[str]:
    config = facts.config
    if "history" in rows.columns:
        yield "earlier turns in a column of their own are not read"
    if config.dataset.max_samples is not None or config.dataset.mix:
        yield "all rows of the one dataset are used, where the run chose or mixed"
    if facts.model.revision or (facts.model.warm_start and not facts.continues_adapter):
        yield "the revision of the model is not pinned, and training starts without an earlier adapter"
    if "feedforward_modules" in facts.traits.fields or "prompt_tuning_init_text" in facts.peft_arguments:
        yield "arguments of PEFT that depend on the model are left to PEFT"
    if facts.traits.has_regularizer:
        yield f"the callback and the regularizer that {config.method_name} needs are left out"


def render(name: str, **values: Any) -> str:
    """Return a script from its template."""
    text = _environment().get_template(f"{name}.py.jinja").render(**values)
    return re.sub(r"\n{4,}", "\n\n\n", text).strip("\n") + "\n"


@cache
def _environment() -> Environment:
    environment = Environment(  # noqa: S701 - what it writes is Python
        loader=FileSystemLoader(_TEMPLATES), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"literal": literal, "arguments": arguments_lines, "docstring": _docstring}
    return environment


def literal(value: Any) -> str:
    """Return a value as Python source, with strings in double quotes.

    Raises:
        TypeError: If its type has no literal.
    """
    if isinstance(value, str):
        # JSON's escapes are valid in Python, except for surrogates, which UTF-8 cannot encode.
        text = json.dumps(value, ensure_ascii=False)
        return text if text.isprintable() else json.dumps(value)
    if value is None or isinstance(value, bool | int | float):
        return repr(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{literal(key)}: {literal(entry)}" for key, entry in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(literal, value)) + "]"
    raise TypeError(f"{type(value).__name__} has no literal.")


def arguments_lines(arguments: Mapping[str, Any], indent: int) -> str:
    """Return keyword arguments in lines with this indent."""
    lines: list[str] = []
    line = ""
    for argument in (f"{name}={literal(value)}," for name, value in arguments.items()):
        if line and indent + len(line) + 1 + len(argument) > _WIDTH:
            lines, line = [*lines, line], ""
        line = f"{line} {argument}" if line else argument
    return textwrap.indent("\n".join([*lines, line]), " " * indent)


def _docstring(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"""', "'''")
    return f'"""{escaped}"""'


def _results(run: RunFolder) -> Iterator[str]:
    history = read_history(run.events)
    if history.last_step and (loss := history.steps.last("loss")) is not None:
        yield f"The run's last of {history.last_step:,} steps had a loss of {loss:.4f}."
    if history.tuned_evals:
        last = history.tuned_evals[-1]
        yield f"Its held-out loss was {last.eval_loss:.4f} after step {last.step:,}."
