"""Does it merge well? Six real NLI specialists, merged by every method, scored on every task.

`material` (rows, halves, base model), `scorer` (what a merged model gets right), `protocol` (one method:
merge, choose a coefficient on the dev half, score on the test half), `bootstrap` (errors and differences),
`report` (tables and picture), `train` (makes the specialists again).
"""
