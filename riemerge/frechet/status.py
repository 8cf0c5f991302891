"""How a solve, or a row of the table of methods, ended: one list of outcomes for all of them."""

from __future__ import annotations

import enum
from typing import final


@final
class Status(enum.Enum):
    """How the mean of one module was found. Stopping is not converging: see the certificate.

    The value of a member is what a person should know or do about it, where nothing more specific is known.
    The name of a member is what `riemerge.json` records.
    """

    # Nothing was iterated, so there is nothing to stop early: all closed forms, and inputs that are all zero.
    EXACT = "The mean is a closed form."
    # What an iteration promises.
    CONVERGED = "The gradient is below the tolerance."
    # Beside CONVERGED because the cost of real adapters settles long before their gradient is below tol.
    FLAT = (
        "The cost no longer decreases by more than cost_tol, though the gradient is above tol. The cost is "
        "settled, the point may not be: where data are far apart many points cost nearly the same."
    )
    # More passes help.
    BUDGET = "The budget of passes ran out. Raise max_passes, loosen tol, or try trust_regions."
    # More passes do not help: beside BUDGET because the remedy is another one.
    STALLED = (
        "No step decreases the cost any further, though the gradient is above tol: round-off, or a point "
        "where the cost is not smooth. Loosen tol, or try another solver."
    )
    # Rules of optimizers that are not ours, of which nothing is known but that they applied.
    STOPPED = (
        "The optimizer stopped by a rule of its own before the gradient reached tol. Loosen that rule, or "
        "tol."
    )
    # An answer exists, but in some directions it is a stand-in.
    SINGULAR = "The mean that was asked for does not exist in some directions: another one stands there."
    # No answer exists: the only outcome for which a merge is refused.
    UNDEFINED = (
        "No finite cost: wherever the solve could start, some data point lies at or beyond the cut locus, or "
        "another distance is not finite."
    )

    @property
    def advice(self) -> str:
        """What a person should know or do about it."""
        return str(self.value)

    @property
    def ok(self) -> bool:
        """Whether the result answers what was asked: EXACT, CONVERGED or FLAT."""
        return self in (Status.EXACT, Status.CONVERGED, Status.FLAT)
