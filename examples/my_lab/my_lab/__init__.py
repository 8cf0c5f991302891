"""A plug-in of riemerge: what `--plugin my_lab` adds to its tables, each loaded when its name is used."""

METHODS = {"sized": "my_lab.method:sized"}
GEOMETRIES = {"sized": "my_lab.geometry:Sized"}
LOSSES = {"cauchy": "my_lab.loss:cauchy"}
SOLVERS = {"barzilai_borwein": "my_lab.solver:BarzilaiBorwein"}
