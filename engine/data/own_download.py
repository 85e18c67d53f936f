"""The process that downloads a dataset with a person's own token, which it reads from stdin."""

import contextlib
from pathlib import Path, PurePosixPath

from huggingface_hub import HfApi, hf_hub_download

from engine.data.files import kind_of
from engine.data.files.access import shown_name
from engine.errors import DatasetError
from engine.hub_errors import DATASET, find_fault
from engine.models.prepared import ModelProgress
from engine.paths import LoratoryHome
from engine.processes.messages import JsonObject, Request, serve
from engine.runs.disk import require_disk_space

_MOST_FILES = 4096
_TIMEOUT_SECONDS = 30.0


def download(params: JsonObject, request: Request) -> JsonObject:
    """Download the data files of a dataset into a folder; unchanged files are not downloaded again."""
    home = LoratoryHome.located()
    hub_id, token, folder = str(params["hub_id"]), str(params["token"]), Path(str(params["folder"]))
    try:
        info = HfApi(token=token).dataset_info(
            hub_id, revision=params["revision"], files_metadata=True, timeout=_TIMEOUT_SECONDS
        )
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or () if _is_data(file.rfilename)}
        _require_files(hub_id, sizes)
        total = sum(sizes.values())
        require_disk_space(home, home.owner, total)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        done = 0
        for name, size in sizes.items():
            request.progress(ModelProgress("downloading", f"Downloading {hub_id}.", done, total)._asdict())
            hf_hub_download(hub_id, name, repo_type="dataset", revision=info.sha, local_dir=folder, token=token)
            done += size
    except Exception as error:
        fault = find_fault(error)
        if fault is None:
            raise
        raise DATASET.explain(fault, hub_id, params["revision"]) from error
    _remove_others(folder, sizes)
    return {"commit": info.sha}


def _is_data(name: str) -> bool:
    parts = PurePosixPath(name).parts
    is_plain = "\\" not in name and ".." not in parts and not any(part.startswith(".") for part in parts)
    return is_plain and name != "README.md" and kind_of(name) is not None


def _require_files(hub_id: str, sizes: dict[str, int]) -> None:
    if not sizes:
        raise DatasetError(
            f"{shown_name(hub_id)} holds no data files that can be read.",
            "Choose a dataset that is stored as Parquet, JSON, CSV, Arrow or text.",
        )
    if len(sizes) > _MOST_FILES:
        raise DatasetError(
            f"{shown_name(hub_id)} has {len(sizes):,} data files; {_MOST_FILES:,} can be read.",
            "Choose another dataset.",
        )


def _remove_others(folder: Path, sizes: dict[str, int]) -> None:
    """Remove the data files of an earlier revision; the metadata of the Hub's library speeds up the next download."""
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name not in sizes and not name.startswith(".cache/"):
            with contextlib.suppress(OSError):
                path.unlink()


if __name__ == "__main__":
    serve({"download": download})
