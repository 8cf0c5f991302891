"""Files: tokenizers, the union of their vocabularies, and chat templates."""

from __future__ import annotations

from riemerge.formats.tokenizer.chat_template import find_template, write_template
from riemerge.formats.tokenizer.vocabulary import (
    TOKENIZER_FILE,
    Vocabulary,
    find_tokens,
    is_tokenizer_file,
    join,
    read_vocabulary,
)

__all__ = [
    "TOKENIZER_FILE",
    "Vocabulary",
    "find_template",
    "find_tokens",
    "is_tokenizer_file",
    "join",
    "read_vocabulary",
    "write_template",
]
