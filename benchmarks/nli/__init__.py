"""Does it merge well? Six real NLI specialists, merged by every method, scored on every task.

`material` (rows, halves, base model), `scorer` (what a merged model gets right), `protocol` (one method:
merge, choose a coefficient on the dev half, score on the test half; tables, norms and errors are those of
`riemerge.study`), `report` (tables and picture), `train` (makes the specialists again).
"""
