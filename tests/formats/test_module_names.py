"""Names of modules: renamed by prefix, and recognised under the prefixes of wrappers."""

from __future__ import annotations

import pytest

from riemerge.formats.module_names import find_renaming, rename

NAMES = {f"model.layers.{layer}.self_attn.{name}" for layer in (0, 1) for name in ("q_proj", "v_proj")}


def under(old: str, new: str) -> set[str]:
    return {name.replace(old, new, 1) for name in NAMES}


@pytest.mark.parametrize(
    ("others", "found"),
    [
        (under("model.", "language_model.model."), ("language_model.", "")),
        (under("model.", "model.model."), ("model.model.", "model.")),
        (under("model.", "base_model.model."), ("base_model.", "")),
        (under("model.", "_orig_mod.model."), ("_orig_mod.", "")),
        (under("model.", "model.language_model."), ("model.language_model.", "model.")),
        (under("model.", "module."), ("model.", "module.")),
        (under("model.", "encoder.model."), ("encoder.", "")),
        (under("model.", "decoder."), None),
        (under("layers.1", "layers.2"), None),
        (under("q_proj", "k_proj"), None),
        (NAMES - {"model.layers.0.self_attn.q_proj"}, None),
    ],
)
def test_a_wrapper_is_found_and_its_renaming_makes_the_names_equal(
    others: set[str], found: tuple[str, str] | None
) -> None:
    if found is None:
        assert find_renaming(NAMES, others) is None
        return
    for one, other in ((NAMES, others), (others, NAMES)):
        old, new = find_renaming(one, other) or ("", "")
        assert {old, new} == {*found}
        assert {rename(name, {old: new}) for name in one} == {rename(name, {old: new}) for name in other}


def test_other_layers_are_no_wrapper_of_each_other() -> None:
    first, last = ({f"model.layers.{layer}.q", f"model.layers.{layer}.v"} for layer in (0, 1))
    assert find_renaming(first, last) is None


def test_the_longest_prefix_decides_and_all_others_stay() -> None:
    prefixes = {"": "x.", "a.": "b.", "a.c.": ""}
    assert [rename(name, prefixes) for name in ("a.c.d", "a.d", "d")] == ["d", "b.d", "x.d"]
    assert rename("d", {"a.": "b."}) == "d"
