"""Pictures of a comparison of solvers: convergence curves and performance profiles (matplotlib)."""

from __future__ import annotations

import io
import math
from typing import Any

from riemerge.records.comparison_record import MEASURES, Comparison

_UNITS = {"passes": "passes over all logarithms", "seconds": "seconds"}
_DASHES = ("-", "--", ":", "-.")


def draw_figures(comparison: Comparison) -> dict[str, bytes]:
    """Return the pictures by file name: `curves` and `profiles`, as PNG and as SVG.

    Curves show the largest ‖gradient‖ over the judged modules, from the first start. Profiles show the share
    of modules that a solver reaches within a multiple of the best solver's passes or seconds.

    Raises:
        ImportError: matplotlib is not there.
    """
    import matplotlib as mpl

    # The same bytes for the same figures; text stays text, so that a page can be searched.
    with mpl.rc_context({"svg.hashsalt": "riemerge", "svg.fonttype": "none", "font.size": 9}):
        files = {}
        for name, draw in (("curves", _draw_curves), ("profiles", _draw_profiles)):
            figure = draw(comparison)
            for suffix, options in (("png", {"dpi": 110}), ("svg", {"metadata": {"Date": None}})):
                content = io.BytesIO()
                figure.savefig(content, format=suffix, **options)
                files[f"{name}.{suffix}"] = content.getvalue()
    return files


def _canvas(comparison: Comparison) -> tuple[Any, Any]:
    """Return a figure and its axes: a row for each case, a column for each measure."""
    from matplotlib.figure import Figure

    rows = len(comparison.cases)
    figure = Figure(
        figsize=(11, 3.6 * rows + 0.25 * math.ceil(len(comparison.solvers) / 3)), layout="constrained"
    )
    return figure, figure.subplots(rows, len(MEASURES), squeeze=False)


def _styles(comparison: Comparison) -> dict[str, dict[str, Any]]:
    """Return a colour for each kind of solver, and a dash for each choice of its options."""
    kinds: dict[str, list[str]] = {}
    for solver in comparison.solvers:
        kinds.setdefault(solver.partition(":")[0], []).append(solver)
    return {
        solver: {
            "color": f"C{colour % 10}",
            "linestyle": _DASHES[dash % len(_DASHES)],
            "lw": 1.4,
            "label": solver,
        }
        for colour, row in enumerate(kinds.values())
        for dash, solver in enumerate(row)
    }


def _draw_curves(comparison: Comparison) -> Any:
    figure, axes = _canvas(comparison)
    for row, case in zip(axes, comparison.cases, strict=True):
        for panel, measure in zip(row, MEASURES, strict=True):
            for solver, style in _styles(comparison).items():
                for run, modules in comparison.judged_runs(case, solver):
                    if run.start == 0:
                        spent = {"passes": run.trace_passes, "seconds": run.trace_seconds}[measure]
                        panel.plot(spent, [_largest(step, modules) for step in run.trace_gradient], **style)
            panel.set(xscale="log", yscale="log", title=case, xlabel=_UNITS[measure])
        row[0].set_ylabel("largest ‖gradient‖")
    return _finish(figure, axes)


def _draw_profiles(comparison: Comparison) -> Any:
    figure, axes = _canvas(comparison)
    for row, case in zip(axes, comparison.cases, strict=True):
        for panel, measure in zip(row, MEASURES, strict=True):
            profiles = comparison.profile(case, measure)
            last = 1.1 * max([2.0, *(ratio for ratios, _ in profiles.values() for ratio in ratios)])
            for solver, style in _styles(comparison).items():
                ratios, shares = profiles[solver]
                panel.step([1, *ratios, last], [0, *shares, *(shares[-1:] or [0])], where="post", **style)
            label = f"{measure} / {measure} of the best solver"
            panel.set(xscale="log", xlim=(1, last), ylim=(0, 1.03), title=case, xlabel=label)
        row[0].set_ylabel("share of modules reached")
    return _finish(figure, axes)


def _largest(step: tuple[float | None, ...], modules: list[int]) -> float:
    """Return the largest gradient of these modules; NaN, which is not drawn, where it is zero."""
    norms = [step[module] for module in modules]
    return max((norm or math.nan for norm in norms), default=math.nan)


def _finish(figure: Any, axes: Any) -> Any:
    """Add grids, and one legend below all panels."""
    for panel in axes.flat:
        panel.grid(True, which="major", alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    lines = {line.get_label(): line for line in axes[0, 0].get_lines()}
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=3, frameon=False)
    return figure
