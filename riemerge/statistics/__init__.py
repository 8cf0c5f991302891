"""What data say about a model: Fisher information, Gram matrices and gradient covariances, module by module.

`collect_statistics` measures a torch model on a data loader and writes a folder; `read_statistics` opens one.

The kinds, for a linear module of weight (m, n) with inputs x and outputs y, per example of loss ℓ:

- `fisher` (m, n): the mean over examples of (∂ℓ/∂W)², the gradient of an example summed over its tokens
  before it is squared. W is the weight as it acts, W₀ + dW for an adapter.
- `gram` (n, n): the sum over tokens of x xᵀ.
- `covariance` (m, m): the sum over tokens of g gᵀ with g = ∂ℓ/∂y. With `gram` these are the Kronecker
  factors.

Each module also has the counts `tokens` and `examples`, and `loss`, the mean loss of an example.

A folder holds `statistics.json` (what was asked: version, kinds, examples, seed, dtype, shapes by module),
and a file `<module>.safetensors` for each module, with one tensor per kind and the counts as 0-d tensors.
Modules are named as in the base model. A file appears whole or not at all, so the files that are there say
how far a collection has come.
"""

from __future__ import annotations

from riemerge.statistics.collect import collect_statistics
from riemerge.statistics.folder import KINDS, Statistics, read_statistics

__all__ = ["KINDS", "Statistics", "collect_statistics", "read_statistics"]
