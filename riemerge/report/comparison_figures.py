"""Pictures of a comparison of solvers: convergence curves and performance profiles (matplotlib)."""

from __future__ import annotations

import io
import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

from riemerge.records.comparison_record import MEASURES, Comparison


def draw_figures(comparison: Comparison) -> dict[str, bytes]:
    """Return the pictures by file name: `curves` and `profiles`, as PNG and as SVG.

    Curves show the largest ‖gradient‖ over the judged modules, from the first start. Profiles show the share
    of modules that a solver reaches within a multiple of the best solver's passes or seconds.

    Raises:
        ImportError: matplotlib is not there.
    """
    import matplotlib as mpl

    files = {}
    # The same bytes for the same comparison; text stays text, so that a page can be searched.
    with mpl.rc_context({"svg.hashsalt": "riemerge", "svg.fonttype": "none", "font.size": 9}):
        for name, draw in (("curves", _draw_curves), ("profiles", _draw_profiles)):
            figure = _draw(comparison, draw)
            for suffix, options in (("png", {"dpi": 110}), ("svg", {"metadata": {"Date": None}})):
                content = io.BytesIO()
                figure.savefig(content, format=suffix, **options)
                files[f"{name}.{suffix}"] = content.getvalue()
    return files


def _draw(comparison: Comparison, draw: Callable[[Any, Comparison, str, str], None]) -> Any:
    """Return a figure with a row of panels for each case, and a column for each measure."""
    from matplotlib.figure import Figure

    rows = len(comparison.cases)
    height = 3.4 * rows + 0.2 * math.ceil(len(comparison.solvers) / 3)
    figure = Figure(figsize=(11, height), layout="constrained")
    axes = figure.subplots(rows, len(MEASURES), squeeze=False).flat
    for panel, (case, measure) in zip(axes, itertools.product(comparison.cases, MEASURES), strict=True):
        draw(panel, comparison, case, measure)
        panel.set_title(case)
        panel.grid(True, alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    lines = {line.get_label(): line for line in axes[0].get_lines()}
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=3, frameon=False)
    return figure


def _draw_curves(panel: Any, comparison: Comparison, case: str, measure: str) -> None:
    for solver, style in _styles(comparison):
        for run, modules in comparison.judge(case, solver):
            norms = [
                max((step[k] or math.nan for k in modules), default=math.nan) for step in run.trace_gradient
            ]
            if run.start == 0:
                panel.plot(run.trace[measure], norms, **style)
    panel.set(xscale="log", yscale="log", xlabel=MEASURES[measure], ylabel="largest ‖gradient‖")


def _draw_profiles(panel: Any, comparison: Comparison, case: str, measure: str) -> None:
    profiles = comparison.profile(case, measure)
    last = 1.1 * max([2.0, *(ratio for ratios, _ in profiles.values() for ratio in ratios)])
    for solver, style in _styles(comparison):
        ratios, shares = profiles[solver]
        panel.step([1, *ratios, last], [0, *shares, (shares or [0])[-1]], where="post", **style)
    panel.set(xscale="log", xlim=(1, last), ylim=(0, 1.03), ylabel="share of modules reached")
    panel.set_xlabel(f"{measure} / least {measure} of all solvers")


def _styles(comparison: Comparison) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield solvers: a colour for each kind, a dash for each choice of its options."""
    kinds: dict[str, list[str]] = defaultdict(list)
    for solver in comparison.solvers:
        kind = kinds[solver.partition(":")[0]]
        kind.append(solver)
        dash = ("-", "--", ":", "-.")[(len(kind) - 1) % 4]
        yield solver, {"color": f"C{len(kinds) - 1}", "linestyle": dash, "lw": 1.4, "label": solver}
