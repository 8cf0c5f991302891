"""Pictures of a comparison of solvers: convergence curves and performance profiles (matplotlib)."""

from __future__ import annotations

import io
import itertools
import math
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
            figure.draw_without_rendering()
            figure.set_layout_engine("none")  # the layout stays, and is not computed once for each format
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
        judged = {(row.problem, row.module) for row in comparison.judge(case, solver)}
        for run in comparison.select(case, solver):
            (problem,) = (problem for problem in comparison.problems if problem.name == run.problem)
            modules = [k for k, module in enumerate(problem.modules) if (run.problem, module) in judged]
            if run.start == 0 and modules:
                norms = [max(step[k] for k in modules) for step in run.trace_gradient]
                panel.plot(run.trace[measure], norms, **style)
    panel.set(xscale="log", yscale="log", xlabel=MEASURES[measure], ylabel="largest ‖gradient‖")


def _draw_profiles(panel: Any, comparison: Comparison, case: str, measure: str) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    profiles = comparison.profile(case, measure)
    last = 1.1 * max([2.0, *(ratio for ratios, _ in profiles.values() for ratio in ratios)])
    for solver, style in _styles(comparison):
        ratios, shares = profiles[solver]
        panel.step([1, *ratios, last], [0, *shares, (shares or [0])[-1]], where="post", **style)
    panel.set(xscale="log", xlim=(1, last), ylim=(0, 1.03), ylabel="share of modules reached")
    panel.set_xlabel(f"{measure} / least {measure} of all solvers")
    panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.xaxis.set_major_formatter("{x:g}")


def _styles(comparison: Comparison) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each solver with its style: ten colours, then the same ones dashed."""
    for place, solver in enumerate(comparison.solvers):
        dash = ("-", "--", ":", "-.")[place // 10 % 4]
        yield solver, {"color": f"C{place % 10}", "linestyle": dash, "lw": 1.4, "label": solver}
