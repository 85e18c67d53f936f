"""What a process of ours is asked, without the process: progress is kept, and it can be cancelled at a given point."""


class RecordedRequest:
    """Keeps what it is told; is cancelled once it has been told so much."""

    def __init__(self, cancel_after: int | None = None) -> None:
        self.progress_log: list[dict] = []
        self._cancel_after = cancel_after

    def progress(self, value: dict) -> None:
        self.progress_log.append(value)

    def is_cancelled(self) -> bool:
        return self._cancel_after is not None and len(self.progress_log) >= self._cancel_after
