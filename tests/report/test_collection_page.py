"""The page of a collection: well-formed, escaped, with nothing to load from anywhere, and read in order."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from riemerge.records.collection_record import CollectionRecord
from riemerge.report.collection_page import SHOWN_ADVICE, collection_page
from tests.records.collections import made_collection

EMPTY = {"meta", "img", "input"}
HOSTILE = '<img src=x onerror="alert(1)">\x1b'


class Page(HTMLParser):
    """Raises where tags are not closed in their order; keeps headings, cells, pictures and scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: dict[str, list[str]] = {}
        self.pictures: list[dict[str, str | None]] = []
        self.keys: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        assert not any(name.startswith("on") for name in found)
        self.pictures += [found] * (tag == "img")
        self.keys += [key for name, key in attrs if name == "data-v" and key]
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert tag in EMPTY or self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.setdefault(self.open[-1] if self.open else "", []).append(data)


def rename(record: CollectionRecord, old: str, new: str) -> CollectionRecord:
    """The record with another name of an adapter, wherever it stands."""
    text = record.model_dump_json().replace(f'"{old}"', CollectionRecord.__name__)
    name = made_collection().advice[0].model_copy(update={"text": new}).model_dump_json()
    (quoted,) = re.findall(r'"text":("(?:[^"\\]|\\.)*")', name)
    return CollectionRecord.model_validate_json(text.replace(CollectionRecord.__name__, quoted))


@pytest.fixture(scope="module")
def page() -> str:
    pictures = {f"{name}.png": b"\x89PNG" for name in ("pairs", "map", "spectra", "kept")}
    return collection_page(rename(made_collection(), "odd", HOSTILE), pictures)


def test_what_was_found_and_what_to_do_come_first_and_the_rest_in_order(page: str) -> None:
    headings = Page(page).texts["h2"]
    assert headings == [
        *("What was found", "What to do", "Pairs", "Map", "Spectra", "Common directions", "Clusters"),
        *("Adapters", "Nearest neighbours", "Geodesic distances", "Left out", "Notes"),
    ]
    assert "riemerge merge law med -o family-0 --method geomerge" in Page(page).texts["code"]
    assert "broken: broken: layers.0.q: lora_A holds 1 NaN or Inf" in Page(page).texts["li"]


def test_a_hostile_name_is_shown_and_does_nothing(page: str) -> None:
    parser = Page(page)
    shown = HOSTILE.replace("\x1b", "\\x1b")
    assert parser.texts["td"].count(shown) >= 2
    assert len(parser.pictures) == 4
    assert HOSTILE[:5] not in page.replace('<img alt="', "")


def test_nothing_is_loaded_and_every_picture_has_a_text(page: str) -> None:
    parser = Page(page)
    assert all(str(picture["src"]).startswith("data:image/png;base64,") for picture in parser.pictures)
    assert all(len(str(picture["alt"])) > 20 for picture in parser.pictures)
    assert not re.search(r'(src|href)="(?!data:)|@import|url\(|https?://', page)
    assert '<html lang="en">' in page


def test_numbers_sort_by_all_their_digits(page: str) -> None:
    parser = Page(page)
    assert "0.305" in parser.keys
    assert "1.2" in parser.keys
    assert {float(key) for key in parser.keys} >= {0.6, 30.0}
    assert len(parser.texts["button"]) == page.count('<th scope="col"')


def test_long_advice_is_folded_away() -> None:
    record = made_collection()
    many = record.model_copy(update={"advice": record.advice[:1] * (SHOWN_ADVICE + 3)})
    page = collection_page(many, {})
    assert Page(page).texts["summary"] == ["and 3 more"]
    assert "<details>" not in collection_page(record, {})
    assert "Nothing stands out" in collection_page(record.model_copy(update={"advice": ()}), {})


def test_without_pictures_the_page_says_what_to_install() -> None:
    bare = collection_page(made_collection(), {}, "no pictures: install <x>")
    assert "no pictures: install &lt;x&gt;" in bare
    assert "<figure>" not in bare
    assert Page(bare).texts["h2"][2] == "Clusters"
