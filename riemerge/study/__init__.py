"""Play with merges: evaluations, soups, sweeps, inspections."""
