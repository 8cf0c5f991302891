"""Results of a study in a file of JSON Lines: what was measured once under a key is not measured again."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias, TypeVar, final

from riemerge.formats.files.staging import write_atomically, writing
from riemerge.formats.files.text import show

Row: TypeAlias = dict[str, Any]

_Result = TypeVar("_Result")
_log = logging.getLogger(__name__)


@final
class ResultTable:
    """Rows by name, one JSON object a line; each has a `key`, the hash of all that decides it.

    Law: a row stays while its key is the same. Each new row replaces the whole file, so that the file holds
    whole rows wherever a run ends; rows that another process wrote meanwhile stay.

    Args:
        path: The file; it need not exist. Its folder must.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        for number, row in self._lines():
            if not row:
                self._warn(f"line {number}", "cannot be read as a result", "it is passed over")

    @property
    def rows(self) -> dict[str, Row]:
        """All rows by their names, in the order of the file; lines that are no rows are left out."""
        return {row["name"]: row for _, row in self._lines() if row}

    def keep(
        self, name: str, key: str, make: Callable[[], Mapping[str, Any]], read: Callable[[Row], _Result]
    ) -> _Result:
        """Return the result of a name under a key; make it and write it where the table has none.

        Args:
            name: The name of the row.
            key: The hash of all that decides the result.
            make: Returns the columns of a new row, `name` and `key` excepted.
            read: Returns the result that a row stands for; the row is made again if it raises a ValueError.
        """
        row = self.rows.get(name)
        if row is not None:
            why = "is of other models or options, another scorer or another version of riemerge"
            if row["key"] == key:
                with suppress(ValueError):
                    return read(row)
                why = "cannot be read as a result"
            self._warn(show(name), why)
        line = json.dumps({"name": name, "key": key, **make()})
        made: Row = json.loads(line)  # as any later run will read it
        rows = self.rows | {name: made}
        write_atomically(self.path, "".join(f"{json.dumps(row)}\n" for row in rows.values()).encode())
        return read(made)

    def _lines(self) -> Iterator[tuple[int, Row]]:
        """Yield the number of each line and its row, empty where the line is none."""
        content = b""
        with writing(self.path), suppress(FileNotFoundError):
            content = self.path.read_bytes()
        for number, line in enumerate(content.splitlines(), 1):
            row: object = None
            with suppress(ValueError, RecursionError):
                row = json.loads(line)
            if not isinstance(row, dict) or not {"name", "key"} <= row.keys():
                row = {}
            yield number, row

    def _warn(self, where: str, why: str, so: str = "it is measured again") -> None:
        _log.warning("%s: %s: %s: %s", show(str(self.path)), where, why, so)
