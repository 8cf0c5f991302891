"""Pictures of a collection: the same bytes again; trees as scipy draws them; no name over a name or point."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from scipy.cluster import hierarchy

from riemerge.records.collection_record import CollectionRecord
from riemerge.report import collection_figures
from riemerge.report.collection_figures import (
    MAX_NAME,
    MOST_NAMES,
    bracket,
    draw_collection,
    draw_map,
    order_leaves,
    shorten,
)
from tests.records.collections import COSINES, made_collection

pytest.importorskip("matplotlib")
from matplotlib.text import Text

Linkage = list[tuple[int, int, float, int]]


def tree(count: int) -> Linkage:
    points = np.random.default_rng(3).normal(size=(count, 4))
    made: Linkage = [(int(a), int(b), h, int(n)) for a, b, h, n in hierarchy.linkage(points, "average")]
    return made


def crowd(count: int) -> CollectionRecord:
    """A collection of adapters of long names, close to each other on the map, an outlier among them."""
    record, rng = made_collection(), np.random.default_rng(0)
    names = [f"an-adapter-of-a-long-name-{place:04d}" for place in range(count)]
    adapters = [record.adapters[0].model_copy(update={"name": name, "cluster": 0}) for name in names]
    family = record.clusters[0].model_copy(update={"members": tuple(names[1:]), "medoid": names[1]})
    outlier = record.outliers[0].model_copy(update={"name": names[0]})
    points = tuple((float(x), float(y)) for x, y in rng.normal(size=(count, 2)))
    changed = {"adapters": tuple(adapters), "clusters": (family,), "outliers": (outlier,), "copies": ()}
    return record.model_copy(update=changed | {"coordinates": points})


def test_all_pictures_are_drawn_and_are_the_same_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collection_figures, "_DPI", 30)
    files = draw_collection(made_collection(), COSINES.numpy())
    assert set(files) == {"pairs.png", "map.png", "spectra.png", "kept.png"}
    assert all(content.startswith(b"\x89PNG") for content in files.values())
    assert draw_collection(made_collection(), COSINES.numpy()) == files


def test_a_letter_that_the_font_lacks_is_a_box_without_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collection_figures, "_DPI", 20)
    record = made_collection()
    adapters = (record.adapters[0].model_copy(update={"name": "法律"}), *record.adapters[1:])
    renamed = record.model_copy(update={"adapters": adapters, "clusters": (), "copies": (), "outliers": ()})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        draw_collection(renamed, COSINES.numpy())
    assert not caught


def test_a_tree_is_drawn_as_scipy_draws_it() -> None:
    linkage = tree(30)
    drawn = hierarchy.dendrogram(np.array(linkage), no_plot=True, count_sort=False, distance_sort=False)
    order = order_leaves(linkage)
    assert order == drawn["leaves"]
    places = (np.array(drawn["icoord"]) - 5) / 10  # scipy's leaves stand at 5, 15, 25, ...
    theirs = sorted(np.stack([drawn["dcoord"], places], 2).tolist())
    np.testing.assert_allclose(sorted(bracket(linkage, order).tolist()), theirs, rtol=1e-14)


def test_a_chain_of_thousands_needs_no_recursion() -> None:
    count = 3000
    chain: Linkage = [(0, 1, 1.0, 2)]
    chain += [(place, count + place - 2, float(place), place + 1) for place in range(2, count)]
    order = order_leaves(chain)
    assert sorted(order) == list(range(count))
    assert bracket(chain, order)[-1, 1, 0] == count - 1


@pytest.mark.parametrize("count", [20, MOST_NAMES + 40])
def test_no_name_covers_a_name_or_a_point_and_the_legend_no_data(count: int) -> None:
    figure = draw_map(crowd(count))
    (panel,) = figure.axes
    figure.draw_without_rendering()
    names: list[Any] = panel.texts
    boxes = [Text.get_window_extent(name) for name in names]  # without the line to its point
    spots = panel.transData.transform(np.array(crowd(count).coordinates))
    for place, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:place])
        assert not any(box.contains(x, y) for x, y in spots)
    assert shorten("an-adapter-of-a-long-name-0000") in {name.get_text() for name in names}
    assert panel.get_legend().get_window_extent().x0 >= panel.get_window_extent().x1
    if count > MOST_NAMES:
        assert len(names) <= 2  # the outlier and the medoid


def test_long_names_keep_both_ends_and_no_name_is_a_formula() -> None:
    assert shorten("a$b$") == r"a\$b\$"
    text = shorten("begin" + "x" * 50 + "end")
    assert len(text) <= MAX_NAME
    assert text.startswith("begin")
    assert text.endswith("end")
