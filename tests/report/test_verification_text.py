"""The text of a verification says how much was merged again, and what was lacking."""

from __future__ import annotations

from riemerge.records.verification_record import Verification
from riemerge.report.verification_text import verification_lines

FOUND = Verification(
    out_type="adapter",
    version="1.0",
    files=("a", "b"),
    modules=9,
    errors={"q": 1e-9, "v": 2e-9},
    tolerance=1e-7,
    lacking=(),
)


def test_the_greatest_error_stands_beside_its_bound() -> None:
    assert verification_lines(FOUND)[-1] == (
        "merged again: 2 of 9 modules, at most 2e-09 from what was written (tolerance 1e-07)"
    )


def test_what_was_not_merged_again_is_said() -> None:
    lines = verification_lines(FOUND.model_copy(update={"errors": {}, "lacking": ("x\x1b",)}))
    assert lines[-1].startswith("merged again: nothing, since inputs were not found: ")
    assert "\x1b" not in "".join(lines)


def test_results_that_were_not_kept_are_named_once() -> None:
    lines = verification_lines(FOUND.model_copy(update={"errors": {}, "earlier": ("first\x1b",)}))
    assert lines[-1].startswith("merged again: nothing, since results of earlier documents went in")
    assert "\x1b" not in "".join(lines)
