"""What a name on the Hugging Face Hub looks like; checked before it becomes part of a path or an address."""

import re

_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]*")
_MAX_HUB_ID_LENGTH = 96


def is_hub_id(text: str) -> bool:
    """Whether this is formed like a Hub id: `name` or `owner/name`."""
    if len(text) > _MAX_HUB_ID_LENGTH or "--" in text or ".." in text or text.endswith((".git", ".gguf")):
        return False
    return _HUB_ID.fullmatch(text) is not None


def is_revision(text: str) -> bool:
    """Whether this is formed like a branch, tag or commit."""
    return _REVISION.fullmatch(text) is not None and ".." not in text
