"""A plug-in of riemerge: what `--plugin my_lab` adds to its tables, each loaded when its name is used."""

LOSSES = {"cauchy": "my_lab.loss:cauchy"}
SOLVERS = {"barzilai_borwein": "my_lab.solver:barzilai_borwein"}
