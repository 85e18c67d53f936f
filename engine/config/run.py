"""The one immutable value that describes a fine-tune; form, command line, preset and run directory are views of it."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, StringConstraints, model_validator
from pydantic.fields import FieldInfo

from loratory.engine.config.methods.base import PeftMethod
from loratory.engine.config.methods.registry import DEFAULT_METHOD, METHODS, MethodSettings
from loratory.engine.config.results import EvaluationSection
from loratory.engine.config.training import TrainingConfig
from loratory.engine.config.vision import VisionConfig
from loratory.engine.scoring.base import Scorer
from loratory.engine.scoring.registry import AnyScorer
from loratory.engine.section import Section, setting

Quantization = Literal["none", "nf4", "fp4", "int8"]
ComputeDtype = Literal["auto", "bfloat16", "float16", "float32"]
DataFormatName = Literal[
    "alpaca", "sharegpt", "messages", "prompt_completion", "text", "preference", "hh", "ranking", "kto", "prompt", "captions"
]  # fmt: skip
DatasetFormat = Literal["auto", DataFormatName]
ImageReading = Literal["fetch", "keep_metadata"]
TrainOn = Literal["assistant", "last_assistant", "completion", "all"]
LauncherName = Literal["local", "accelerate"]
Place = Literal["local", "jobs", "slurm", "ssh"]
WorkPlace = Literal["local", "slurm"]  # where a model is loaded: this machine, or a node of the cluster

_HUB_PAGE = re.compile(
    r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/(datasets/)?(?!datasets/|spaces/)"
    r"([\w.-]+(?:/[\w.-]+)?)(?:/tree/main)?/?(?:[?#].*)?"
)


def id_of_page(text: str, *, of_dataset: bool = False) -> str:
    """Return the id of the model, or dataset, whose page on the Hub has this address; any other text as it is.

    An address with another branch than main stays one: its id alone would mean other files.
    """
    page = _HUB_PAGE.fullmatch(text.strip())
    return page[2] if page and bool(page[1]) == of_dataset else text


def _of_page(*, of_dataset: bool = False) -> BeforeValidator:
    return BeforeValidator(lambda text: id_of_page(text, of_dataset=of_dataset) if isinstance(text, str) else text)


if TYPE_CHECKING:
    Method = str
else:
    Method = Literal[tuple(METHODS)]


class ModelConfig(Section):
    """The base model."""

    id: Annotated[str, _of_page()] = setting(..., "Model", min_length=1, max_length=400)
    """A name from the catalogue, a Hugging Face Hub id such as Qwen/Qwen3-0.6B, the address of its page, a local folder, or a .gguf file."""
    revision: str | None = setting(None, "Revision", max_length=200)
    """Branch, tag or commit on the Hub. Empty uses the default branch, pinned to its commit at the start."""
    quantization: Quantization = setting("none", "Base precision")
    """none keeps 16 bits, nf4 and fp4 quarter the weights (QLoRA), int8 halves them and is slow. nf4 is better than fp4."""
    double_quant: bool = setting(True, "Double quantization")
    """Also quantizes the scales of nf4 and fp4: saves 0.4 bits per weight without measurable loss."""
    compute_dtype: ComputeDtype = setting("auto", "Compute dtype")
    """auto uses bfloat16 where the device is fast in it, else float16 on GPUs and float32 on CPUs. Answers on CPUs are in bfloat16."""
    attn_implementation: Literal["auto", "sdpa", "eager", "flash_attention_2"] = setting("auto", "Attention")
    """auto uses flash attention where it is installed and fits the model, else sdpa."""

    @property
    def shown_name(self) -> str:
        """What messages call it: of a path only the last part, which reveals no folders."""
        return Path(self.id).name if Path(self.id).is_absolute() else self.id


class AdapterConfig(MethodSettings):
    """The trainable part; settings of other methods than the chosen one are ignored."""

    method: Method = setting(DEFAULT_METHOD.name, "Method")
    """What is trained, and how. lora suits most tasks; none trains the whole model."""
    warm_start: str | None = setting(None, "Start from an adapter", max_length=1000)
    """A run's id, or a folder with an adapter of the same make: training continues from its weights, with a fresh optimizer. Empty starts a new one."""

    @model_validator(mode="before")
    @classmethod
    def _fill_defaults_of_the_method(cls, values: Any) -> Any:
        """Give settings that are left out the chosen method's own defaults, where they differ from the fields'."""
        method = METHODS.get(str(values.get("method", DEFAULT_METHOD.name))) if isinstance(values, dict) else None
        return {**method.defaults, **values} if method is not None else values

    @property
    def traits(self) -> PeftMethod:
        """The chosen method."""
        return METHODS[self.method]

    def changes_for(self, method: str) -> dict[str, Any]:
        """Return the settings that change with the method: its name, and defaults that nothing has replaced."""
        old, new = self.traits.defaults, METHODS[method].defaults
        changes: dict[str, Any] = {"method": method}
        for name in {**old, **new}:
            default = type(self).model_fields[name].default
            if getattr(self, name) == old.get(name, default):
                changes[name] = new.get(name, default)
        return changes


DatasetSource = Annotated[str, _of_page(of_dataset=True)]
RoleName = Annotated[str, StringConstraints(strip_whitespace=True, to_lower=True, min_length=1, max_length=60)]
TurnRole = Literal["user", "assistant", "system", "tool", ""]
SET_PREFIX = "set:"  # of a version of a set: set:NAME@VERSION, or set:NAME for the newest


class DatasetConfig(Section):
    """The dataset of a run."""

    source: DatasetSource = setting(..., "Dataset", min_length=1, max_length=1000)
    """A file or folder, a Hugging Face Hub id or the address of its page, set:NAME for a set of yours, or sample:NAME for one of the samples that come with Loratory."""
    subset: str | None = setting(None, "Subset", max_length=200)
    """Configuration of a Hub dataset that has several."""
    split: str = setting("train", "Split", max_length=200)
    """The split of a Hub dataset to train on."""
    revision: str | None = setting(None, "Revision", max_length=200)
    """Branch, tag or commit of a Hub dataset."""
    format: DatasetFormat = setting("auto", "Format")
    """auto detects it and shows why. Choose one when it is wrong."""
    column_map: dict[str, str] = setting({}, "Column mapping")
    """Names of your columns for the roles of the format, such as output: answer. An empty name leaves a role out."""
    role_map: dict[RoleName, TurnRole] = setting({}, "Role mapping", max_length=100)
    """Roles of the turns that your rows name otherwise, such as customer: user. An empty role leaves these turns out."""
    mix: dict[DatasetSource, Annotated[float, Field(gt=0, le=100)]] = setting({}, "Mixed with", max_length=20)
    """More datasets, each with a weight: 1 uses all of its rows once, 0.5 half of them, 2 each of them twice. Format and columns apply where they fit."""
    images: tuple[ImageReading, ...] = setting((), "Images")
    """fetch downloads images that rows name by an https address; keep_metadata keeps the places, names and times in photos, which are removed otherwise."""
    eval_fraction: float = setting(0.1, "Held-out set", ge=0.0, le=0.5)
    """Share of the rows kept out of training, to measure the held-out loss."""
    max_samples: int | None = setting(None, "Max samples", ge=1, le=1_000_000_000)
    """Use only this many rows, spread evenly. Empty uses all."""
    train_on: TrainOn = setting("assistant", "Train on")
    """Which tokens count in the loss. Turns with weight 0 are masked unless train_on is all."""
    scorers: tuple[AnyScorer, ...] = setting((), "Scorers", max_length=20)
    """What rates the rows' own answers in row checks. Training ignores it."""


_BIDI_CONTROLS = dict.fromkeys((*range(0x202A, 0x202F), *range(0x2066, 0x206A)))
# A line without the characters that set the direction of text: they would change that of the words after a name as well.
OneLine = Annotated[
    str, BeforeValidator(lambda text: text.translate(_BIDI_CONTROLS) if isinstance(text, str) else text)
]


class RunSection(Section):
    """What a run is called and where it executes."""

    name: OneLine = setting("", "Name", max_length=120, pattern=r"^[^\x00-\x1f\x7f]*$")
    """Run name. Empty makes one of data, method and two words, such as faq-lora-brisk-otter."""
    project: OneLine = setting("", "Project", max_length=40, pattern=r"^[^\x00-\x1f\x7f]*$")
    """The project that the run starts in, whose test sets it answers once it is complete. Empty is none."""
    devices: Literal["auto", "cpu"] | tuple[int, ...] = setting("auto", "Device")
    """auto takes the first free GPU, else the CPU; cpu never takes a GPU; a list names CUDA devices by number, and MIG instance j of GPU i as 100 * (i + 1) + j."""
    resume_after_restart: bool = setting(False, "Resume automatically")
    """Resume from the newest checkpoint after a restart of the machine. Otherwise one click resumes it."""
    where: Place = setting("local", "Where")
    """This machine (local), a machine that you reach by SSH (ssh), a Slurm cluster that shares the home (slurm), or Hugging Face Jobs (jobs), paid by the minute."""
    launcher: LauncherName = setting("local", "Launcher")
    """local starts one process; accelerate starts one per device."""
    device_map: Literal["none", "balanced"] = setting("none", "Spread over GPUs")
    """balanced divides the layers of one model among the GPUs that run.devices names, for a model that one GPU cannot hold. They work in turn, so it is not faster than one; none keeps the whole model on each device."""
    fsdp: Literal["none", "full_shard"] = setting("none", "Shard over GPUs")
    """full_shard divides one model among the GPUs of the launcher (FSDP2), for a model that one GPU cannot hold. All of them work at once."""

    @property
    def is_elsewhere(self) -> bool:
        """Whether another machine trains, whose devices are unknown here."""
        return self.where != "local"

    @property
    def executor(self) -> str:
        """Name of the executor that starts the run."""
        return self.where if self.is_elsewhere else self.launcher

    @property
    def processes(self) -> int:
        """Processes that train together on this machine: one for each device that is named, where a launcher starts them."""
        return 1 if self.launcher == "local" or isinstance(self.devices, str) else len(self.devices)

    @property
    def spread_over(self) -> int:
        """GPUs that one model's layers are divided among; 1 where each device holds the whole model."""
        count = len(self.devices) if not isinstance(self.devices, str) else 1
        return count if self.device_map != "none" else 1


class JobsConfig(Section):
    """What a run on Hugging Face Jobs may use; ignored on this machine."""

    flavor: str = setting("", "Hardware", max_length=60, pattern=r"^[a-z0-9-]*$")
    """Its name there, such as l4x1. Empty takes the cheapest that covers the 90% upper bound."""
    limit_hours: float | None = setting(None, "Time limit, hours", gt=0, le=168)
    """After it the job saves and stops. Empty estimates a generous one from the model and the data."""
    namespace: str = setting("", "Paid by", max_length=96, pattern=r"^[A-Za-z0-9._-]*$")
    """Your organisation that pays for the job and keeps its files meanwhile. Empty means your own account."""

    def count_processes(self, run: RunSection) -> int:  # noqa: ARG002
        """Return how many processes train such a run together."""
        return 1


class SlurmConfig(Section):
    """What a run on a Slurm cluster asks for; ignored elsewhere. The cluster itself is described in cluster.yaml."""

    gpus: int = setting(1, "GPUs per node", ge=1, le=64)
    """GPUs in each node; several train together. A run whose device is cpu takes none."""
    gpu_type: str = setting("", "GPU type", max_length=60, pattern=r"^[A-Za-z0-9_.-]*$")
    """As Slurm calls it, such as a100. Empty takes the smallest that covers the 90% upper bound."""
    nodes: int = setting(1, "Nodes", ge=1, le=256)
    """Machines that train together."""
    memory_gib: float | None = setting(None, "RAM per node, GiB", gt=0, le=100_000)
    """Beyond it, Slurm ends the run. Empty takes an estimate."""
    limit_hours: float | None = setting(None, "Time limit, hours", gt=0, le=8760)
    """The run saves before it, and continues as another job. Empty takes an estimate."""

    def count_processes(self, run: RunSection) -> int:
        """Return one for each GPU of each node."""
        return self.nodes * (1 if run.devices == "cpu" else self.gpus)


class SshConfig(Section):
    """Which machine a run by SSH trains on; ignored elsewhere."""

    machine: str = setting("", "Machine", max_length=40, pattern=r"^[a-z0-9-]*$")
    """Its name, as `loratory machine add` gave it. Empty takes the one with the most free memory that covers the 90% upper bound."""

    def count_processes(self, run: RunSection) -> int:
        """Return how many processes train such a run together."""
        return run.processes


class RunConfig(Section):
    """A complete fine-tune."""

    model: ModelConfig
    adapter: AdapterConfig = AdapterConfig()
    dataset: DatasetConfig
    training: TrainingConfig = TrainingConfig()
    vision: VisionConfig = VisionConfig()
    run: RunSection = RunSection()
    jobs: JobsConfig = JobsConfig()
    slurm: SlurmConfig = SlurmConfig()
    ssh: SshConfig = SshConfig()
    evaluation: EvaluationSection = EvaluationSection()

    @property
    def method_name(self) -> str:
        """Name of the method on this base, such as QLoRA for LoRA on four bits."""
        return self.adapter.traits.display_name(self.model.quantization)

    @property
    def names(self) -> tuple[tuple[str, str], ...]:
        """Field and text of each setting that may name a file or folder."""
        dataset, start = self.dataset, self.adapter.warm_start
        sources = (("dataset.source", dataset.source), *(("dataset.mix", source) for source in dataset.mix))
        files = [("training.rewards", path) for scorer in self.scorers if (path := getattr(scorer, "path", ""))]
        files += [("evaluation.tests", test.source) for test in self.evaluation.tests]
        return (*sources, ("model.id", self.model.id), *((("adapter.warm_start", start),) if start else ()), *files)

    @property
    def scorers(self) -> tuple[Scorer, ...]:
        """The rewards of the run, and the scorers of its dataset and its test sets."""
        own = (*self.training.rewards, *self.dataset.scorers)
        return (*own, *(scorer for test in self.evaluation.tests for scorer in test.scorers))

    @property
    def test_datasets(self) -> tuple[DatasetConfig, ...]:
        """The datasets of its test sets, in their order."""
        return tuple(DatasetConfig(source=t.source, split=t.split, eval_fraction=0.0) for t in self.evaluation.tests)

    def with_names(self, replace: Callable[[str, str], str]) -> Self:
        """Return the same with other `names`; `replace` gets field and text, and returns the new text."""
        mix: dict[str, float] = {}
        for source, weight in self.dataset.mix.items():
            name = replace("dataset.mix", source)
            mix[source if name in mix else name] = weight  # two names of one file keep apart, for each has its weight
        source = replace("dataset.source", self.dataset.source)
        sections: dict[str, Section] = {
            "model": self.model.model_copy(update={"id": replace("model.id", self.model.id)}),
            "dataset": self.dataset.model_copy(update={"source": source, "mix": mix}),
        }
        if self.adapter.warm_start:
            start = replace("adapter.warm_start", self.adapter.warm_start)
            sections["adapter"] = self.adapter.model_copy(update={"warm_start": start})

        def with_files(scorers: tuple[Scorer, ...]) -> tuple[Scorer, ...]:
            paths = ((scorer, getattr(scorer, "path", "")) for scorer in scorers)
            return tuple(s.model_copy(update={"path": replace("training.rewards", p)}) if p else s for s, p in paths)

        if self.scorers:
            tests = tuple(
                test.model_copy(
                    update={"source": replace("evaluation.tests", test.source), "scorers": with_files(test.scorers)}
                )
                for test in self.evaluation.tests
            )
            sections["training"] = self.training.model_copy(update={"rewards": with_files(self.training.rewards)})
            sections["evaluation"] = EvaluationSection(tests=tests)
            sections["dataset"] = sections["dataset"].model_copy(update={"scorers": with_files(self.dataset.scorers)})
        return self.model_copy(update=sections)


def field_of(setting: str) -> FieldInfo:
    """Return the field of a setting such as `training.max_length`: its default and its bounds."""
    section, _, name = setting.partition(".")
    kind = RunConfig.model_fields[section].annotation
    assert kind is not None
    field: FieldInfo = kind.model_fields[name]
    return field


def by_section(values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Group values of settings, each by its full name such as `training.max_length`, by section."""
    sections: dict[str, dict[str, Any]] = {}
    for full_name, value in values.items():
        section, _, name = full_name.partition(".")
        sections.setdefault(section, {})[name] = value
    return sections
