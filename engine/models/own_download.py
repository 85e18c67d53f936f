"""The process that fetches a model with a person's own token, which it gets through stdin; has no torch."""

from pathlib import Path

from engine.models.hub import fetch_from_hub
from engine.models.prepared import ModelProgress
from engine.paths import LoratoryHome
from engine.processes.messages import JsonObject, Request, serve
from engine.runs.disk import require_disk_space


def download(params: JsonObject, request: Request) -> JsonObject:
    """Fetch a whole model into the Hub's cache, which is the person's own by this process's environment."""
    home = LoratoryHome.located()

    def report(progress: ModelProgress) -> None:
        request.progress(progress._asdict())

    def require_room(_folder: Path, needed_bytes: int, _subject: str, _instead: str) -> None:
        require_disk_space(home, home.owner, needed_bytes)

    place = fetch_from_hub(
        params["hub_id"], params["revision"], on_progress=report, token=params["token"], require_room=require_room
    )
    return {"commit": place.commit}


if __name__ == "__main__":
    serve({"download": download})
