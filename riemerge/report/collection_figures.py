"""Pictures of a collection of adapters (matplotlib): pairs, a map, spectra, energy in common directions."""

from __future__ import annotations

import io
import itertools
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from riemerge.records.collection_record import CollectionRecord
from riemerge.report.words import printable, when

Array = NDArray[np.float64]

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8C7A00")
"""Colours that people of every colour vision tell apart (Okabe and Ito 2008), the yellow darkened."""

MARKERS = "osD^vP"
"""Markers of clusters: each goes through all colours before the next."""

GREY = "#8A8A8A"
"""Colour of adapters that are in no family."""

PICTURES = ("pairs.png", "map.png", "spectra.png", "kept.png")
"""Names of the files of the pictures."""

MOST_NAMES = 80
"""Above so many adapters, pictures name clusters, medoids and outliers only."""

MOST_OUTLIERS = 10
"""Most outliers, those of the largest score, that the map of so many adapters names."""

MAX_NAME = 30
MOST_KEYS = 16
"""Most clusters, or groups of modules, that a legend names."""

_DPI = 110
_LINE = 0.15  # inches that a line of text of 8 points takes
_LEVELS = 41  # colours of the pairs; with 256 the file of a thousand adapters is a half larger


class _Marks(NamedTuple):
    """What pictures mark: the label of each adapter's family, or -1; places of medoids, copies, outliers."""

    families: list[int]
    medoids: list[int]
    copies: list[int]
    outliers: list[int]


def draw_collection(record: CollectionRecord, cosine: Array) -> dict[str, bytes]:
    """Return the pictures of a collection as PNG, by file name.

    Law: a function of its arguments; the same bytes for the same matplotlib. A box stands for each letter
        that its font lacks, such as those of Chinese.

    Args:
        record: The collection of T adapters.
        cosine: (T, T), cosines of the dW of each pair.

    Returns:
        A picture for each name in PICTURES.

    Raises:
        ImportError: matplotlib is not there.
    """
    import matplotlib as mpl

    alone = (partial(draw, record) for draw in (draw_map, draw_spectra, draw_kept))
    drawings = (partial(draw_pairs, record, cosine), *alone)
    files = {}
    with (
        mpl.rc_context({"font.size": 8, "axes.titlesize": 9, "axes.titlelocation": "left"}),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font")
        for name, draw in zip(PICTURES, drawings, strict=True):
            content = io.BytesIO()
            draw().savefig(content, format="png", dpi=_DPI, bbox_inches="tight", pad_inches=0.12)
            files[name] = content.getvalue()
    return files


def order_leaves(linkage: Sequence[tuple[int, int, float, int]]) -> list[int]:
    """Return the T leaves of a dendrogram from first to last, so that no two of its branches cross."""
    count = len(linkage) + 1
    leaves = {leaf: [leaf] for leaf in range(count)}
    for node, (first, second, _, _) in enumerate(linkage, count):
        leaves[node] = leaves.pop(first) + leaves.pop(second)
    return leaves[2 * count - 2]


def bracket(linkage: Sequence[tuple[int, int, float, int]], order: Sequence[int]) -> Array:
    """Return the brackets of a dendrogram as polylines, without recursion, however deep it is.

    Law: a bracket stands at the height of its merge, over the middles of the two that it joins.

    Args:
        linkage: T - 1 rows as scipy makes them.
        order: The T leaves from first to last; leaf `order[place]` stands at `place`.

    Returns:
        (T - 1, 4, 2): four corners each, as (height, place).
    """
    count = len(order)
    place, height = np.zeros(2 * count - 1), np.zeros(2 * count - 1)
    place[np.asarray(order)] = np.arange(count)
    corners = np.zeros((count - 1, 4, 2))
    for row, (first, second, merged, _) in enumerate(linkage):
        corners[row, :, 0] = height[first], merged, merged, height[second]
        corners[row, :, 1] = place[[first, first, second, second]]
        place[count + row], height[count + row] = place[[first, second]].mean(), merged
    return corners


def shorten(name: str) -> str:
    r"""Return a name of at most MAX_NAME characters, its middle left out, which matplotlib shows as it is.

    >>> shorten("a$b")
    'a\\$b'
    """
    text = printable(name)
    if len(text) > MAX_NAME:
        half = (MAX_NAME - 1) // 2
        text = f"{text[:half]}…{text[-half:]}"
    return text.replace("$", r"\$")


# --- pairs --------------------------------------------------------------------------------------------------


def draw_pairs(record: CollectionRecord, cosine: Array) -> Any:
    """Return a figure: the cosines of all pairs in the order of the dendrogram, which stands beside them."""
    from matplotlib import colormaps
    from matplotlib.collections import LineCollection
    from matplotlib.colors import FuncNorm
    from matplotlib.figure import Figure

    order, families = order_leaves(record.linkage), _marks(record).families
    count, side = len(order), float(np.clip(_LINE * len(order), 3.2, 9.2))
    left, below = 2.0, 1.1
    width, height = left + 0.2 + side, side + below
    figure = Figure(figsize=(width, height))

    def panel(start: float, wide: float, low: float = below, high: float = side) -> Any:
        return figure.add_axes((start / width, low / height, wide / width, high / height))

    branches, corners = panel(0.2, 1.7), bracket(record.linkage, order)
    # A thousand leaves of full width would be one black mass.
    sizes = np.array([size for *_, size in record.linkage])
    widths = np.clip(6 * sizes / count, min(90 / count, 0.8), 0.8)
    branches.add_collection(LineCollection(list(corners), colors="#333333", linewidths=widths))
    top = 1.04 * corners[:, :, 0].max(initial=0.01)
    branches.set(xlim=(top, 0), ylim=(count - 0.5, -0.5), yticks=[], xlabel="distance √(2 - 2 cosine)")
    branches.spines[["top", "left", "right"]].set_visible(False)
    stripe = panel(left, 0.14)
    for place, leaf in enumerate(order):
        if families[leaf] >= 0:
            stripe.axhspan(place - 0.5, place + 0.5, color=_style(families[leaf])[0], lw=0)
    stripe.set(ylim=(count - 0.5, -0.5), xticks=[], yticks=[])
    stripe.spines[:].set_visible(False)
    heat = panel(left + 0.2, side)
    norm = FuncNorm((lambda x: np.sign(x) * np.sqrt(np.abs(x)), lambda x: np.sign(x) * x**2), -1, 1)
    colours = colormaps["RdBu_r"].resampled(_LEVELS)
    image = heat.imshow(cosine[np.ix_(order, order)], cmap=colours, norm=norm, interpolation="nearest")
    texts = _row_texts(record, order, _LINE / side * count)
    heat.yaxis.tick_right()
    heat.set_yticks(list(texts), list(texts.values()))
    heat.set(xticks=[], title="cosine of the dW of each pair, all modules together")
    bar = figure.colorbar(image, cax=panel(left, side + 0.2, 0.6, 0.14), orientation="horizontal")
    ticks = (-1, -0.5, -0.2, -0.05, 0, 0.05, 0.2, 0.5, 1)
    bar.set_ticks(ticks, labels=[f"{tick:g}".replace("0.", ".") for tick in ticks])
    bar.set_label("cosine (coloured by its root, so that small ones show)")
    return figure


def _row_texts(record: CollectionRecord, order: Sequence[int], least: float) -> dict[float, str]:
    """Return what stands beside the rows: each name where all fit, else the families that are tall enough."""
    if len(order) <= MOST_NAMES:
        return {place: shorten(record.adapters[leaf].name) for place, leaf in enumerate(order)}
    families = _marks(record).families
    rows: dict[int, list[int]] = {}
    for place, leaf in enumerate(order):
        rows.setdefault(families[leaf], []).append(place)
    rows.pop(-1, None)
    tall = {label: places for label, places in rows.items() if len(places) >= least}
    return {float(np.mean(places)): f"cluster {label}: {len(places)}" for label, places in tall.items()}


# --- the map ------------------------------------------------------------------------------------------------


def draw_map(record: CollectionRecord) -> Any:
    """Return a figure: adapters as points of a plane, with clusters, copies, outliers and names."""
    from matplotlib.figure import Figure

    points, marks = np.array(record.coordinates), _marks(record)
    figure = Figure(figsize=(9.6, 6.4))
    panel: Any = figure.add_axes((0.07, 0.09, 0.66, 0.84))
    size, sizes = float(np.clip(3000 / len(points), 14, 60)), Counter(marks.families)
    for label in sorted(sizes):
        colour, marker = _style(label)
        text = when(label < 0, f"in no family: {sizes[-1]}") or f"cluster {label}: {sizes[label]} adapters"
        rows = [place for place, family in enumerate(marks.families) if family == label]
        style = {"c": colour, "marker": marker, "linewidths": 0.4, "edgecolors": "white"}
        key = when(label < MOST_KEYS, text) or None
        panel.scatter(*points[rows].T, s=size, zorder=2 + (label >= 0), label=key, **style)
    if more := len(set(sizes) - {*range(-1, MOST_KEYS)}):
        panel.scatter([], [], alpha=0, label=f"and {more} smaller clusters")
    ring = {"marker": "o", "s": 2.6 * size, "facecolors": "none", "edgecolors": "black", "linewidths": 1.0}
    cross = {"marker": "x", "s": 1.4 * size, "c": "black", "linewidths": 1.0}
    dot = {"marker": ".", "s": 0.4 * size, "c": "black", "linewidths": 0}
    for text, places, kind in (
        ("copy, or has one", marks.copies, ring),
        ("outlier", marks.outliers, cross),
        ("medoid of a cluster", marks.medoids, dot),
    ):
        if places:
            panel.scatter(*points[places].T, label=text, zorder=6, **kind)
    panel.margins(0.12)
    panel.set_aspect("equal", adjustable="datalim")
    share = sum(record.coordinates_share)
    panel.set_title(f"distances √(2 - 2 cosine) of the dW; this plane shows {share:.0%} of their squares")
    _finish(panel)
    _name_points(panel, record, points, float(np.sqrt(size)))
    return figure


_RINGS = (0.9, 2.5, 4.5, 8.0, 14.0)  # distances of a name from its point, in diameters
_SEATS = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1))  # to the right, upwards
_ACROSS, _UP = {1: "left", 0: "center", -1: "right"}, {1: "bottom", 0: "center", -1: "top"}
_LEADER = {"arrowstyle": "-", "lw": 0.4, "color": "#555555", "shrinkA": 0, "shrinkB": 0}


def _name_points(panel: Any, record: CollectionRecord, points: Array, diameter: float) -> None:
    """Put names beside points, the most telling first, wherever they cover neither a point nor a name.

    Outliers, medoids and copies may stand farther off, with a line to their point.
    """
    marks, few = _marks(record), len(points) <= MOST_NAMES
    marked = [*marks.outliers, *marks.medoids, *marks.copies]
    if not few:
        marked = [*marks.outliers[:MOST_OUTLIERS], *marks.medoids[:MOST_NAMES]]
    marked = list(dict.fromkeys(marked))
    others = [place for place in range(len(points)) if few and place not in marked]
    panel.figure.draw_without_rendering()
    spots, bounds = panel.transData.transform(points), panel.get_window_extent()
    boxes = np.zeros((0, 4))
    for place in [*marked, *others]:
        note = {"text": shorten(record.adapters[place].name), "xy": points[place], "fontsize": 7, "zorder": 7}
        text = panel.annotate(**note)
        extent = np.array([text.get_window_extent().width, text.get_window_extent().height])
        text.remove()
        for ring, seat in itertools.product(_RINGS[: 1 + len(_RINGS) * (place in marked)], np.array(_SEATS)):
            offset = seat * (ring * diameter + 1)
            low = spots[place] + panel.figure.dpi / 72 * offset - extent * (1 - seat) / 2
            box = np.concatenate([low, low + extent])
            if _is_free(box, boxes, np.delete(spots, place, 0), bounds):
                boxes = np.vstack([boxes, box])
                note |= {"xytext": tuple(offset), "textcoords": "offset points"}
                note |= {"ha": _ACROSS[seat[0]], "va": _UP[seat[1]]}
                note |= {"arrowprops": [None, _LEADER][ring > _RINGS[0]]}
                panel.annotate(**note)
                break


def _is_free(box: Array, boxes: Array, spots: Array, bounds: Any) -> bool:
    """Return whether a box of pixels lies within bounds, and covers no other box and no spot."""
    inside = bounds.x0 <= box[0] and box[2] <= bounds.x1 and bounds.y0 <= box[1] and box[3] <= bounds.y1
    beside = ((boxes[:, :2] >= box[2:]) | (boxes[:, 2:] <= box[:2])).any(1)
    covered = ((spots > box[:2] - 2) & (spots < box[2:] + 2)).all(1)
    return inside and bool(beside.all()) and not covered.any()


# --- curves -------------------------------------------------------------------------------------------------


def draw_spectra(record: CollectionRecord) -> Any:
    """Return a figure: singular values over all modules with their quartiles, and medians by projection."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(7.6, 4.2))
    panel: Any = figure.subplots()
    curves = _curves(record, {spectrum.group: spectrum for spectrum in record.spectra})
    for spectrum, style in curves:
        panel.plot(np.arange(1, len(spectrum.median) + 1), _positive(spectrum.median), **style)
    total = curves[0][0]
    quartiles = _positive(total.low, 1e-300), _positive(total.high)
    places = np.arange(1, len(total.median) + 1)
    panel.fill_between(places, *quartiles, color="black", alpha=0.15, lw=0, label="quartiles of all modules")
    least = min((value for spectrum, _ in curves for value in spectrum.median if value > 0), default=0.1)
    panel.set(yscale="log", ylim=(0.5 * max(least, 1e-9), 1.3))
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panel.set(xlabel="number of the singular value", ylabel="share of the largest of its update (median)")
    panel.set_title("singular values of the dW of all adapters, module by module")
    _finish(panel)
    return figure


def draw_kept(record: CollectionRecord) -> Any:
    """Return a figure: the energy that k common directions a side keep, by projection and by depth."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(7.6, 8.6))
    panel: Any
    depth: Any
    panel, depth = figure.subplots(2, 1)
    kept = {row.group: row for row in record.kept}
    for row, style in _curves(record, kept):
        panel.plot(row.directions, row.kept, **style)
    panel.set(xscale="log", xlabel="k, common directions a side", ylabel="share of the energy Σ ‖dW‖² kept")
    panel.set_title("energy of the collection in k common directions a side")
    layers = {group.layer: kept[group.name] for group in record.groups if group.layer is not None}
    counts = record.kept[0].directions
    for place, count in enumerate(counts):
        # A layer whose directions are fewer than k keeps all of its energy in them.
        shares = [dict(zip(row.directions, row.kept, strict=True)).get(count, 1.0) for row in layers.values()]
        colour = colormaps["cividis"](0.9 * place / max(1, len(counts) - 1))
        style = {"color": colour, "marker": "o", "markersize": 3, "lw": 1.2, "label": f"k = {count}"}
        depth.plot(list(layers), shares, **style)
    depth.xaxis.set_major_locator(MaxNLocator(integer=True))
    depth.set(xlabel="depth (number of the layer)", ylabel="share of the energy kept")
    depth.set_title("energy kept by depth")
    for axes in (panel, depth):
        axes.set_ylim(0, 1.03)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        _finish(axes, reverse=axes is depth)
    panel.set_xticks(counts, list(map(str, counts)))
    panel.minorticks_off()
    figure.subplots_adjust(hspace=0.3)
    return figure


def _curves(record: CollectionRecord, rows: Mapping[str, Any]) -> list[tuple[Any, dict[str, Any]]]:
    """Return the row of all modules, and the first ones by projection, each with the style of its curve."""
    first, *others = record.groups
    curves = [(rows[first.name], {"color": "black", "lw": 2.0, "label": "all modules", "zorder": 4})]
    names = [group.name for group in others if group.kind == "projection" and group.name in rows]
    for place, name in enumerate(names[:MOST_KEYS]):
        colour, marker = _style(place)
        style = {"color": colour, "marker": marker, "markersize": 4, "lw": 1.2}
        curves.append((rows[name], style | {"label": shorten(name.rpartition("*.")[2])}))
    return curves


def _finish(panel: Any, *, reverse: bool = False) -> None:
    """Put the legend beside a panel, and take away what is no data."""
    panel.grid(True, alpha=0.2)
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, reverse=reverse)


def _positive(values: Sequence[float], instead: float = np.nan) -> Array:
    """Return values for a logarithmic axis, others in place of those that it cannot show."""
    array = np.array(values)
    return np.where(array > 0, array, instead)


def _style(label: int) -> tuple[str, str]:
    """Return the colour and the marker of a cluster: all colours with each marker in turn; grey for none."""
    if label < 0:
        return GREY, "o"
    return COLOURS[label % len(COLOURS)], MARKERS[label // len(COLOURS) % len(MARKERS)]


def _marks(record: CollectionRecord) -> _Marks:
    """Return what pictures mark."""
    places = {name: place for place, name in enumerate(record.names)}
    families = [row for row in record.clusters if row.kind in {"family", "copies"}]
    labels = {name: row.label for row in families for name in row.members}
    copies = {group.kept for group in record.copies}
    copies |= {row.name for group in record.copies for row in group.repetitions}
    return _Marks(
        families=[labels.get(name, -1) for name in record.names],
        medoids=sorted(places[row.medoid] for row in families),
        copies=sorted(places[name] for name in copies),
        outliers=list(dict.fromkeys(places[row.name] for row in record.outliers)),
    )
