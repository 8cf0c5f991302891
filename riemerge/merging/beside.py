"""What lies beside the tensors of a merged checkpoint: settings, tokenizer, chat template, code."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, final

from riemerge.errors import AdapterError, RecipeError
from riemerge.formats.checkpoint import Checkpoint
from riemerge.formats.checkpoint.embedded import embed, vocabulary_tensors
from riemerge.formats.checkpoint.patched import PatchedCheckpoint
from riemerge.formats.checkpoint.settings import (
    SETTINGS_FILE,
    read_settings,
    resize_vocabulary,
    take_special_tokens,
    untie_settings,
    write_settings,
)
from riemerge.formats.files.text import list_names, show
from riemerge.formats.tokenizer import (
    TOKENIZER_FILE,
    Vocabulary,
    find_template,
    find_tokens,
    is_tokenizer_file,
    join,
    read_vocabulary,
    write_template,
)
from riemerge.recipes.recipe import Recipe

_GENERATION_FILE = "generation_config.json"


@final
@dataclass(frozen=True, eq=False)
class Beside:
    """The files that go with a merged checkpoint, and the checkpoints as they are merged for them.

    Attributes:
        checkpoints: The checkpoints, or views of them in the vocabulary of the tokenizer that is written.
        files: What is written beside the tensors, by name: a file to copy, or its content.
        notes: What a person should know of it.
        settings: What `config.json` says of the result; None without one.
        read: The sha256 of each tokenizer that was read, by the folder of its model.
    """

    checkpoints: tuple[Checkpoint, ...]
    files: Mapping[str, Path | bytes]
    notes: tuple[str, ...] = ()
    settings: Mapping[str, Any] | None = None
    read: Mapping[str, str] = field(default_factory=dict)

    def with_settings(self, settings: Mapping[str, Any] | None) -> Beside:
        """Return the files with other settings; the file as it is where they are the same."""
        if settings is None or settings == self.settings:
            return self
        files = {**self.files, SETTINGS_FILE: write_settings(settings).encode()}
        return replace(self, files=files, settings=settings)


def put_beside(
    recipe: Recipe,
    checkpoints: Sequence[Checkpoint],
    lead: Checkpoint,
) -> Beside:
    """Say what lies beside a merged checkpoint, and put the models in one vocabulary where that is asked.

    Law: without a tokenizer in the recipe the files are those beside the base model, or the first model. With
    one, the embeddings and heads of all models have the rows of its tokens (see `embed`), and its files take
    the place of the others. A model without a tokenizer counts as one with that of the base model or the
    first, which is said; so are tokenizers that differ where none is asked for.

    Args:
        recipe: What asks for a tokenizer and a chat template.
        checkpoints: The open checkpoints, the base model among them.
        lead: The one of them whose files go with the result.

    Raises:
        RecipeError: No model and no folder has the tokenizer that is asked for.
        AdapterError: A tokenizer or the settings cannot be read, or it is not known which tensors have
            rows of tokens.
    """
    files: dict[str, Path | bytes] = {path.name: path for path in lead.other_files}
    result = Beside(tuple(checkpoints), files, settings=read_settings(lead))
    if result.settings and any(isinstance(one, PatchedCheckpoint) and one.parts_head for one in checkpoints):
        result = result.with_settings(untie_settings(result.settings))
    if recipe.tokenizer is not None:
        result = _use_tokenizer(recipe, result, lead)
    else:
        result = replace(result, notes=tuple(_differing_tokens(checkpoints, lead)))
    if recipe.chat_template is None:
        return result
    ordered = [lead, *(one for one in checkpoints if one is not lead)]
    text = find_template(recipe.chat_template, map(_folder, ordered))
    if text is None:
        note = "chat_template: auto: no model has one, and none is written"
        return replace(result, notes=(*result.notes, note))
    config = result.files.get("tokenizer_config.json")
    assert not isinstance(config, bytes)
    texts = write_template(text, config)
    files = {**result.files, **{name: content.encode() for name, content in texts.items()}}
    files.pop("chat_template.json", None)
    return replace(result, files=files)


def _folder(checkpoint: Checkpoint) -> Path:
    """Return the folder of what lies beside a checkpoint, which may be a view of one."""
    return next((path.parent for path in checkpoint.other_files), checkpoint.path)


def _differing_tokens(checkpoints: Sequence[Checkpoint], lead: Checkpoint) -> Iterator[str]:
    """Say which models have other tokens than the lead, as far as their tokenizers can be read."""
    own = find_tokens(_folder(lead))
    for one in checkpoints:
        other = find_tokens(_folder(one))
        if own is not None and other is not None and own != other:
            apart = [token for token in {**own, **other} if own.get(token) != other.get(token)]
            yield (
                f"{one.name}: its tokenizer is not that of {lead.name}: {len(apart)} tokens have other ids "
                f"or are in one alone ({list_names(apart)}), and rows of embeddings are merged by their "
                "places: tokenizer: union merges them by their tokens"
            )


def _use_tokenizer(recipe: Recipe, given: Beside, lead: Checkpoint) -> Beside:
    """Put all models in the vocabulary of the tokenizer that a recipe asks for."""
    checkpoints, files, settings = given.checkpoints, dict(given.files), given.settings
    found = {one: read_vocabulary(_folder(one)) for one in checkpoints}
    source = _find_source(recipe, checkpoints, lead)
    if isinstance(source, Checkpoint):
        chosen, folder = found[source], _folder(source)
    else:
        chosen, folder = read_vocabulary(source), source
    if not any(found.values()) and isinstance(source, Checkpoint):
        note = "tokenizer: no model has one: the rows of embeddings are merged by their places"
        return replace(given, notes=(note,))
    own = found[lead]
    AdapterError.refuse(
        f"{place}: has no {TOKENIZER_FILE}: expected the tokenizer that the recipe asks for, and that of the "
        "model whose files go with the result"
        for place, vocabulary in {_folder(lead): own, folder: chosen}.items()
        if vocabulary is None
    )
    assert own is not None
    assert chosen is not None
    notes = [
        f"{one.name}: has no {TOKENIZER_FILE}: taken to have that of {lead.name}"
        for one, vocabulary in found.items()
        if vocabulary is None
    ]
    ordered = [lead, *(one for one in checkpoints if one is not lead)]
    vocabularies = [found[one] or own for one in ordered]
    if recipe.tokenizer == "union":
        chosen = join(vocabularies)
        files = _with_tokenizer(files, chosen, own)
        notes += [f"tokenizer: {show(token)}: {fault}" for token, fault in chosen.faults.items()]
    elif source is not lead:
        files = _take_files(files, folder)
    ids = [vocabulary.ids for vocabulary in vocabularies]
    for one, tokens in zip(ordered, ids, strict=True):
        size = vocabulary_tensors(one)[0]
        if lacking := [token for token, row in tokens.items() if row >= size]:
            notes.append(
                f"{one.name}: tokens without a row, since its embeddings have {size} rows: {len(lacking)} "
                f"({list_names(lacking)}): they count as tokens that it lacks"
            )
    views = embed(ordered, ids, chosen.ids, based=recipe.base_model is not None)
    if views[0] is not lead:
        count = f"the rows of {len(chosen.ids)} tokens"
        notes.append(f"tokenizer: {recipe.tokenizer}: embeddings and heads have {count}")
    if settings:
        settings = resize_vocabulary(settings, vocabulary_tensors(lead)[0], vocabulary_tensors(views[0])[0])
        if source is not lead and isinstance(source, Checkpoint):
            settings = take_special_tokens(settings, read_settings(source) or {})
    by_checkpoint = dict(zip(ordered, views, strict=True))
    read = {one.name: vocabulary.sha256 for one, vocabulary in found.items() if vocabulary}
    views = [by_checkpoint[one] for one in checkpoints]
    result = replace(given, checkpoints=tuple(views), files=files, notes=tuple(notes), read=read)
    return result.with_settings(settings)


def _with_tokenizer(
    files: Mapping[str, Path | bytes], joined: Vocabulary, own: Vocabulary
) -> dict[str, Path | bytes]:
    """Return files with the union of vocabularies as the tokenizer, if it is not one of them already."""
    if joined.document == own.document:
        return dict(files)
    kept = {
        name: path
        for name, path in files.items()
        if not is_tokenizer_file(name) or is_tokenizer_file(name, of_union=True)
    }
    return {**kept, TOKENIZER_FILE: joined.text().encode()}


def _find_source(recipe: Recipe, checkpoints: Sequence[Checkpoint], lead: Checkpoint) -> Checkpoint | Path:
    """Return the model whose tokenizer is asked for: the lead for `base` and `union`; or a folder."""
    asked = recipe.tokenizer
    assert asked is not None
    if asked in {"base", "union"}:
        return lead
    for one in checkpoints:
        if Path(asked) == one.path or Path(asked).resolve() == one.path.resolve():
            return one
    if not Path(asked).is_dir():
        names = list_names([str(one.path) for one in checkpoints])
        raise RecipeError(f"tokenizer: {asked}: expected base, union, a folder, or a model's: {names}")
    return Path(asked)


def _take_files(files: Mapping[str, Path | bytes], folder: Path) -> dict[str, Path | bytes]:
    """Return files with those of the tokenizer in another folder in place of the tokenizer's."""
    kept = {name: path for name, path in files.items() if not is_tokenizer_file(name)}
    taken = [path for path in folder.iterdir() if is_tokenizer_file(path.name)]
    taken += [path for path in folder.iterdir() if path.name == _GENERATION_FILE]
    return {**kept, **{path.name: path for path in sorted(taken)}}
