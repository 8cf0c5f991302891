"""A method of one's own: a choice of geometry, loss and solver, with a name."""

from riemerge.methods.method import Method

sized = Method(
    name="sized",
    summary="the average, with a robust mean of the inputs' sizes",
    source="examples/my_lab of riemerge",
    geometry="sized",
    loss="cauchy",
    solver="barzilai_borwein",
)
