"""The SQLite file of a lab's accounts: readable by its user alone, and by several processes at once."""

import contextlib
import os
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

from loratory.engine.errors import StorageError

DATABASE_FILE = "accounts.sqlite3"  # its presence makes a home a lab
_BUSY_SECONDS = 10
_SCHEMA = Path(__file__).with_name("templates") / "schema.sql"


class Database:
    """One connection to the file, for one thread at a time.

    Args:
        path: Created with mode 0600 where it is missing, its folder with 0700.

    Raises:
        StorageError: If it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()  # guards the connection: a transaction belongs to one thread
        with self._explained_errors():
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            # SQLite gives its own side files the mode of this one. A file that exists is not opened here: closing it
            # would drop the locks of this process's other connections, and another process would remove their log.
            with contextlib.suppress(FileExistsError):
                os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
            path.chmod(0o600)
            self._connection = sqlite3.connect(
                path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
            self._connection.row_factory = sqlite3.Row
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA foreign_keys = ON")
        with self.transaction() as connection:
            for statement in _SCHEMA.read_text(encoding="utf-8").split(";"):
                connection.execute(statement)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Let the caller read and write; all of it is kept, or none where it raises.

        Raises:
            StorageError: If the file cannot be read or written.
        """
        with self._lock, self._explained_errors():
            # Taken at once: two processes that both read and then write would otherwise fail, not wait.
            self._connection.execute("BEGIN IMMEDIATE")
            with self._connection:
                yield self._connection

    def execute(self, query: str, *values: object) -> None:
        """Change something in a transaction of its own.

        Raises:
            StorageError: If the file cannot be read or written.
        """
        with self.transaction() as connection:
            connection.execute(query, values)

    def rows(self, query: str, *values: object) -> list[sqlite3.Row]:
        """Return what a query that changes nothing finds.

        Raises:
            StorageError: If the file cannot be read.
        """
        with self._lock, self._explained_errors():
            return self._connection.execute(query, values).fetchall()

    def copy_to(self, path: Path) -> None:
        """Write a consistent copy, while others read and write.

        Raises:
            StorageError: If it cannot be written.
        """
        with self._lock, self._explained_errors():
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
            with contextlib.closing(sqlite3.connect(path)) as copy:
                self._connection.backup(copy)

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            self._connection.close()

    @contextlib.contextmanager
    def _explained_errors(self) -> Iterator[None]:
        try:
            yield
        except (OSError, sqlite3.Error) as error:
            raise StorageError(
                f"The accounts in {self._path.name} cannot be used ({error}).",
                "Check the permissions and the free space of LORATORY_HOME, or restore a backup.",
            ) from error
