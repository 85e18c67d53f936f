"""How a result is put on the Hugging Face Hub."""

from typing import Literal

from engine.config.export import MERGED_DTYPE_HELP, ExportDtype
from engine.config.section import Section, setting

PushKind = Literal["adapter", "merged"]


class PushConfig(Section):
    """Settings of one push."""

    kind: PushKind = setting(
        "adapter",
        label="Format",
        help="adapter is what was trained alone, small, to be loaded on its base; merged is a complete model with the "
        "adapter worked into its weights.",
    )
    private: bool = setting(
        True,
        label="Private",
        help="Only you or your organization can see it. Off, it is public.",
    )
    dtype: ExportDtype = setting(
        "auto",
        label="Merged precision",
        help=MERGED_DTYPE_HELP,
    )
    verify: bool = setting(
        True,
        label="Verify before pushing",
        help="Load the export and compare its answers with the run. What differs is not pushed.",
    )
    revision: str | None = setting(
        None,
        label="Branch",
        help="The branch to commit to, created where it is missing. Empty uses the main branch.",
        min_length=1,
        max_length=100,
    )
    commit_message: str | None = setting(
        None,
        label="Commit message",
        help="Empty names the run.",
        min_length=1,
        max_length=200,
    )
