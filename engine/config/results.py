"""Settings of what is done with a trained model: chat, evaluation, export, and the Hub."""

from pathlib import PureWindowsPath
from typing import Literal

from loratory.engine.scoring.registry import AnyScorer
from loratory.engine.section import Section, setting

MergeMethod = Literal["cat", "svd", "linear", "ties", "dare_ties"]  # names of PEFT's combination_type
ExportKind = Literal["adapter", "merged", "gguf", "compressed"]
ExportDtype = Literal["auto", "bfloat16", "float16", "float32"]
GgufType = Literal["auto", "q4_k_m", "q5_k_m", "q6_k", "q8_0", "bf16", "f16"]
Compression = Literal["fp8", "w4a16", "w4a16_awq", "mxfp4", "nvfp4"]
PushKind = Literal["adapter", "merged"]

MERGED_DTYPE_HELP = (
    "auto keeps that of the base model's files where the merged model then answers as the run does, and else takes "
    "float32, which loses nothing and takes twice the room of 16 bits. Without verification it keeps that of the files."
)


class SamplingConfig(Section):
    """Settings of one generation; temperature 0 is greedy and then nothing is random."""

    temperature: float = setting(0.3, "Temperature", ge=0.0, le=5.0)
    """0 always takes the most likely token. 1 samples from the model's own distribution."""
    top_p: float = setting(0.9, "Top-p", gt=0.0, le=1.0)
    """Samples from the smallest set of tokens with this total probability. 1 turns it off."""
    top_k: int = setting(0, "Top-k", ge=0, le=1_000_000)
    """Samples from this many most likely tokens. 0 turns it off."""
    repetition_penalty: float = setting(1.0, "Repetition penalty", ge=0.1, le=10.0)
    """Above 1, tokens that occurred already are less likely. 1 turns it off; 1.1 is usual."""
    max_new_tokens: int = setting(512, "Max new tokens", ge=1, le=1_048_576)
    """Token limit of an answer."""
    seed: int | None = setting(None, "Seed", ge=0, le=2**32 - 1)
    """The same seed gives the same answer on the same device. Empty is random."""

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is always taken."""
        return self.temperature == 0


class EvaluationConfig(Section):
    """Settings of one evaluation."""

    max_rows: int | None = setting(None, "Rows for loss", ge=1, le=10_000_000)
    """Held-out rows whose loss is measured, spread evenly. Empty uses all."""
    answered_rows: int = setting(20, "Rows to answer", ge=0, le=10_000)
    """Held-out rows that base and tuned answer, to compare with the reference. 0 skips it."""
    max_new_tokens: int = setting(128, "Max new tokens", ge=1, le=65_536)
    """Token limit of an answer."""
    general_text: bool = setting(True, "Measure forgetting")
    """Also measures base and tuned on some fifty short general texts, which shows what training unlearned."""
    source: str | None = setting(None, "Dataset", max_length=4_000)
    """Measures all rows of this dataset, instead of the rows that the run held out."""


HELD_OUT_PROMPTS = "Held-out prompts"  # of a run that learns from rewards; they are its own rows and not a set


class TestSet(Section):
    """Prompts apart from the training and held-out rows, and how answers to them are scored."""

    source: str = setting(..., "Dataset", min_length=1, max_length=1000)
    """A file or folder, a Hub id, set:NAME or sample:humaneval, with prompts and, where scorers need it, references."""
    split: str = setting("test", "Split", max_length=200)
    """The split of a Hub dataset."""
    scorers: tuple[AnyScorer, ...] = setting(..., "Scorers", min_length=1, max_length=20)
    """Scorers of the answers; their weighted scores add up."""
    max_rows: int | None = setting(200, "Max prompts", ge=1, le=100_000)
    """Answers this many prompts, spread evenly. Empty answers all."""
    samples: int = setting(1, "Answers per prompt", ge=1, le=64)
    """1 takes the likeliest answer. More are sampled, for pass@k."""
    temperature: float = setting(0.7, "Temperature", gt=0, le=5)
    """Of several answers per prompt."""
    max_new_tokens: int = setting(256, "Max new tokens", ge=1, le=65_536)
    """Token limit of an answer."""
    tag: str = setting("", "Tag column", max_length=200)
    """A column by which scores are grouped, such as a topic. Empty groups by none."""

    __test__ = False  # for pytest

    @property
    def title(self) -> str:
        """The last part of its source."""
        return PureWindowsPath(self.source).name  # reads both kinds of separators


class EvaluationSection(Section):
    """What every evaluation of a run measures, apart from its held-out rows."""

    tests: tuple[TestSet, ...] = setting((), "Test sets", max_length=20)
    """Test sets that base, start and tuned model answer in an evaluation of the run."""


class ExportConfig(Section):
    """Settings of one export."""

    kind: ExportKind = setting("adapter", "Format")
    """adapter is what was trained alone, small, to be loaded on its base; merged is a complete model with the adapter worked into its weights; gguf is the complete model in one file for llama.cpp, Ollama and LM Studio; compressed is the complete model in 8 or 4 bits for vLLM."""
    dtype: ExportDtype = setting("auto", "Merged precision", description=MERGED_DTYPE_HELP)
    gguf_type: GgufType = setting("auto", "GGUF precision")
    """auto keeps 16 bits. q8_0 halves the file and answers almost the same; q4_k_m is the usual choice where memory is short."""
    compression: Compression = setting("fp8", "Compressed to")
    """fp8 halves the model and answers almost the same. w4a16 rounds weights to 4 bits by GPTQ, w4a16_awq by AWQ; both read rows of the run, and take minutes to hours."""
    keep_merged: bool = setting(False, "Keep merged model")
    """Also keep the merged model that the GGUF file or the compressed model is made from, in a folder named merged."""
    max_shard_gb: float = setting(5.0, "Max file size, GB", gt=0, le=1000)
    """Larger models are split into several files."""
    verify: bool = setting(True, "Verify")
    """Load the export and compare its answers with the run. It takes as long as a short chat."""


class MergeConfig(Section):
    """How the adapters of several runs become one."""

    method: MergeMethod = setting("cat", "Method")
    """cat is the weighted sum of the updates, exactly, and its rank is the sum of all. svd brings that to a smaller rank, which takes long for large models. linear adds the factors themselves, a rough approximation. ties drops small values and conflicting signs, dare_ties drops random ones; these three need one rank."""
    rank: int | None = setting(None, "Rank", ge=1, le=4096)
    """Of the result of svd. Empty takes the largest of the parts; their sum loses nothing."""
    density: float = setting(0.5, "Density", gt=0, le=1)
    """The share of values that ties and dare_ties keep."""
    seed: int = setting(42, "Seed", ge=0, le=2**31 - 1)
    """Of the values that dare_ties drops."""


class PushConfig(Section):
    """Settings of one push."""

    kind: PushKind = setting("adapter", "Format")
    """adapter is what was trained alone, small, to be loaded on its base; merged is a complete model with the adapter worked into its weights."""
    private: bool = setting(True, "Private")
    """Only you or your organization can see it. Off, it is public."""
    dtype: ExportDtype = setting("auto", "Merged precision", description=MERGED_DTYPE_HELP)
    verify: bool = setting(True, "Verify before pushing")
    """Load the export and compare its answers with the run. What differs is not pushed."""
    revision: str | None = setting(None, "Branch", min_length=1, max_length=100)
    """The branch to commit to, created where it is missing. Empty uses the main branch."""
    commit_message: str | None = setting(None, "Commit message", min_length=1, max_length=200)
    """Empty names the run."""
