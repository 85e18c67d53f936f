"""A request without its process: progress is recorded, and it can be cancelled at a given point."""


class RecordedRequest:
    """Records progress; is cancelled after a number of reports."""

    def __init__(self, cancel_after: int | None = None) -> None:
        self.progress_log: list[dict] = []
        self._cancel_after = cancel_after

    def progress(self, value: dict) -> None:
        self.progress_log.append(value)

    def is_cancelled(self) -> bool:
        return self._cancel_after is not None and len(self.progress_log) >= self._cancel_after
