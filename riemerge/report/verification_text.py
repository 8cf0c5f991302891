"""The text of a verification: what was found right."""

from __future__ import annotations

from riemerge.formats.files.text import list_names
from riemerge.records.verification_record import Verification
from riemerge.report.words import printable


def verification_lines(found: Verification) -> list[str]:
    """Say in lines what was found right: the files, that they open, and what was merged again."""
    most = max(found.errors.values(), default=0.0)
    again = (
        f"merged again: {len(found.errors)} of {found.modules} modules, at most {most:.1g} from what was "
        f"written (tolerance {found.tolerance:.1g})"
    )
    if found.earlier:
        names = printable(list_names(found.earlier))
        again = (
            f"merged again: nothing, since results of earlier documents went in and were not kept: {names}"
        )
    if found.lacking:
        names = printable(list_names(found.lacking))
        again = f"merged again: nothing, since inputs were not found: {names}: --inputs FOLDER names them"
    return [
        f"files: {len(found.files)} as riemerge {printable(found.version)} wrote them",
        f"opens: {found.out_type} with the modules and shapes of its record",
        again,
    ]
