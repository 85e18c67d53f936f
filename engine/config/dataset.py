"""What the model learns from, and which part of it counts."""

from typing import Annotated, Literal

from pydantic import Field

from engine.config.section import Section, setting

DataFormatName = Literal["alpaca", "sharegpt", "messages", "prompt_completion", "text"]
DatasetFormat = Literal["auto", DataFormatName]
TrainOn = Literal["assistant", "last_assistant", "completion", "all"]


class DatasetConfig(Section):
    """The dataset of a run."""

    source: str = setting(
        label="Dataset",
        help="A file or folder, a Hugging Face Hub id, or sample:NAME for one of the samples that come with Loratory.",
        min_length=1,
        max_length=1000,
    )
    subset: str | None = setting(
        None, label="Subset", help="Configuration of a Hub dataset that has several.", max_length=200
    )
    split: str = setting("train", label="Split", help="The split of a Hub dataset to train on.", max_length=200)
    revision: str | None = setting(
        None, label="Revision", help="Branch, tag or commit of a Hub dataset.", max_length=200
    )
    format: DatasetFormat = setting(
        "auto",
        label="Format",
        help="auto detects it and shows why. Choose one when it is wrong.",
    )
    column_map: dict[str, str] = setting(
        {},
        label="Column mapping",
        help="Names of your columns for the roles of the format, such as output: answer. An empty name leaves a role out.",
    )
    mix: dict[str, Annotated[float, Field(gt=0, le=100)]] = setting(
        {},
        label="Mixed with",
        help="More datasets, each with a weight: 1 uses all of its rows once, 0.5 half of them, 2 each of them twice. Format and columns apply where they fit.",
        max_length=20,
    )
    eval_fraction: float = setting(
        0.1,
        label="Held-out set",
        help="Share of the rows kept out of training, to measure the held-out loss.",
        ge=0.0,
        le=0.5,
    )
    max_samples: int | None = setting(
        None,
        label="Max samples",
        help="Use only this many rows, spread evenly. Empty uses all.",
        ge=1,
        le=1_000_000_000,
    )
    train_on: TrainOn = setting(
        "assistant",
        label="Train on",
        help="Which tokens count in the loss. Turns with weight 0 never count, except with everything.",
    )
