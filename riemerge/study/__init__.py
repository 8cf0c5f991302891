"""Play with merges: evaluate methods, make soups, sweep weights, inspect adapters.

`evaluation`, `soups`, `sweeps` and `inspection` have a verb each. A benchmark of one's own can build on the
pieces below them, as `benchmarks/nli` does: `result_table` (what was measured once is not measured again),
`norm_search` (as many looks for each method), `method_trials.merge_or_refuse`, `scorer` (what a scorer says)
and `paired_differences` (how sure a difference is).
"""
