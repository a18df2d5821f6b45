"""What makes two rows the same question, and two questions related: 64-bit digests.

Two different values have the same digest with probability 2**-64: about 3e-8 for a million values.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import xxhash

END = "\0"


def text_digest(texts: Iterable[str]) -> int:
    """Return the digest of a list of texts."""
    return xxhash.xxh3_64_intdigest(END.join(texts).encode("utf-8", "surrogatepass"))


def question(row: Mapping[str, Any]) -> list[str]:
    """Return the texts of a row's question without system messages, white space normalized.

    They are those of `prompt`, or of `messages` without the last one. The row's messages have to
    be correct.
    """
    messages = row.get("prompt") or (row.get("messages") or [])[:-1]
    texts = []
    for message in messages:
        if message["role"] != "system":
            texts += [message["role"], " ".join(message["content"].split())]
    return texts


def row_digest(row: Mapping[str, Any], images: Sequence[int]) -> int:
    """Return the digest of a row's question and images, by which rows are duplicates.

    Rows without a `prompt` are demonstrations: several responses to one question differ.
    """
    texts = [*question(row), *map(str, images)]
    if not row.get("prompt"):
        texts.append(row["messages"][-1]["content"])
    return text_digest(texts)


def shared_digests(row: Mapping[str, Any], images: Sequence[int]) -> list[int]:
    """Return what no row of another split may have: its images, or else its question."""
    return list(dict.fromkeys(images)) or [text_digest(question(row))]
