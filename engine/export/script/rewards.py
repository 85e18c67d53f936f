"""Write scorers as reward functions of TRL; each has a template with its code, which gives the same scores."""

import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loratory.engine.errors import RunError
from loratory.engine.scoring.base import SandboxedScorer, Scorer

_TEMPLATES = Path(__file__).with_name("templates") / "rewards"
_SHARED = ("json_of", "references", "value")  # functions that scorers call, each in a template of its name


@dataclass(frozen=True)
class WrittenRewards:
    """Reward functions as parts of a script."""

    imports: tuple[str, ...] = ()  # modules of the standard library
    library_imports: tuple[str, ...] = ()
    code: str = ""
    functions: tuple[tuple[str, str, dict[str, Any]], ...] = ()  # name in TRL's log, name in the code, settings

    @property
    def packages(self) -> str:
        """What `pip install` needs for them, after a space."""
        return "".join(f" {module.partition('.')[0].replace('_', '-')}" for module in self.library_imports)


def write_rewards(scorers: Sequence[Scorer]) -> WrittenRewards:
    """Return the code of scorers and of what they call.

    Raises:
        RunError: If a scorer has no code that runs without Loratory.
    """
    for scorer in scorers:
        if not _template_of(scorer.scorer).is_file():
            raise RunError(
                f"A script cannot have the reward {scorer.scorer}, which needs Loratory to score answers.",
                "Replace it in training.rewards, for example by a file of your own (scorer: file).",
            )
    names = ["reward", *dict.fromkeys(scorer.scorer for scorer in scorers)] if scorers else []
    modules: dict[str, None] = {}
    codes: list[str] = []
    for name in names:  # grows
        head, code = _read(name)
        modules |= dict.fromkeys(head)
        codes.append(code)
        names += [shared for shared in _SHARED if shared not in names and re.search(rf"\b{shared}\(", code)]
    counts: Counter[str] = Counter()
    functions = []
    for scorer in scorers:
        counts[scorer.scorer] += 1
        label = f"{scorer.scorer}#{counts[scorer.scorer]}" if counts[scorer.scorer] > 1 else scorer.scorer
        functions.append((label, f"{scorer.scorer}_score", _settings_of(scorer)))
    return WrittenRewards(
        imports=tuple(module for module in modules if module in sys.stdlib_module_names),
        library_imports=tuple(sorted(module for module in modules if module not in sys.stdlib_module_names)),
        code="\n\n\n".join(codes),
        functions=tuple(functions),
    )


def _template_of(name: str) -> Path:
    return _TEMPLATES / f"{name}.py.jinja"


def _read(name: str) -> tuple[list[str], str]:
    """Return the modules that a template imports, and its code."""
    text = _template_of(name).read_text(encoding="utf-8")
    code = re.sub(r"^import .*\n", "", text, flags=re.MULTILINE)
    return re.findall(r"^import (.*)$", text, re.MULTILINE), code.strip("\n")


def _settings_of(scorer: Scorer) -> dict[str, Any]:
    """Return what the code of a scorer takes; the limits of a sandbox have no effect without one."""
    settings = scorer.model_dump(exclude={"scorer", "weight", *SandboxedScorer.model_fields} - {"ignore_reasoning"})
    if isinstance(scorer, SandboxedScorer):
        settings["path"] = str(Path(settings["path"]).expanduser().absolute())
    return settings
