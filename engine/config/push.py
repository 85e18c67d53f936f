"""How a result is put on the Hugging Face Hub."""

from typing import Literal

from engine.config.export import MERGED_DTYPE_HELP, ExportDtype
from engine.config.section import Section, setting

PushKind = Literal["adapter", "merged"]


class PushConfig(Section):
    """Settings of one push."""

    kind: PushKind = setting(
        "adapter",
        label="What to put there",
        help="adapter is what was trained alone, small, to be loaded on its base; merged is a complete model with the "
        "adapter worked into its weights.",
    )
    private: bool = setting(
        True,
        label="Private",
        help="Only you, or your organization, can see a private repository. Off, everybody can.",
    )
    dtype: ExportDtype = setting(
        "auto",
        label="Precision of the merged weights",
        help=MERGED_DTYPE_HELP,
    )
    verify: bool = setting(
        True,
        label="Verify before it is sent",
        help="Load what was written and compare its answers with the run's; what differs is not sent.",
    )
    revision: str | None = setting(
        None,
        label="Branch",
        help="The branch to commit to, made where it is missing. Empty takes the main branch.",
        min_length=1,
        max_length=100,
    )
    commit_message: str | None = setting(
        None,
        label="Commit message",
        help="What the repository's history says of this push. Empty names the run.",
        min_length=1,
        max_length=200,
    )
