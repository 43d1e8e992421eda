"""Chunks: a page cut where its own structure allows, each with an id that only depends on what it is."""

import hashlib
import json
from dataclasses import dataclass

from obelisk.rag.vault import Page, Scalar

#: Where a text is cut, best place first. The last one cuts anywhere.
SEPARATORS = ("\n## ", "\n### ", "\n#### ", "\n- ", "\n* ", "\n1. ", "\n```", "\n", " ", "")


@dataclass(frozen=True)
class Chunk:
    """A piece of a page."""

    id: str
    source: str
    text: str
    metadata: dict[str, Scalar]


def split(text: str, size: int, overlap: int) -> list[str]:
    """Cuts a text into pieces of at most `size` characters of which neighbours share up to `overlap`."""
    if size < 1 or not 0 <= overlap < size:
        raise ValueError(f"a chunk of {size} characters cannot overlap by {overlap}")
    chunks: list[str] = []
    window: list[str] = []
    length = 0
    fresh = False  # whether the window holds more than what the last chunk ended with
    for piece in _pieces(text, size, SEPARATORS):
        if fresh and length + len(piece) > size:
            chunks.append("".join(window))
            fresh = False
            while window and (length > overlap or length + len(piece) > size):
                length -= len(window.pop(0))
        while window and length + len(piece) > size:
            length -= len(window.pop(0))
        window.append(piece)
        length += len(piece)
        fresh = True
    if fresh:
        chunks.append("".join(window))
    return [chunk for chunk in (chunk.strip() for chunk in chunks) if chunk]


def _pieces(text: str, size: int, separators: tuple[str, ...]) -> list[str]:
    """Pieces of at most `size` characters that together are the text; a separator begins the piece after it."""
    if len(text) <= size:
        return [text] if text else []
    for at, separator in enumerate(separators):
        if not separator:
            return [text[start : start + size] for start in range(0, len(text), size)]
        if separator in text:
            first, *rest = text.split(separator)
            parts = [first, *(separator + part for part in rest)]
            return [piece for part in parts for piece in _pieces(part, size, separators[at + 1 :])]
    raise AssertionError("the last separator cuts anywhere")


def chunks(page: Page, size: int, overlap: int, model: str) -> list[Chunk]:
    """The chunks of a page.

    An id hashes the page's path, its metadata, the embedding model, the text, and, where a page says the same thing
    twice, which time it is. So the same page always gives the same ids, and an edit changes only those it touches.
    """
    seen: dict[str, int] = {}
    made = []
    for text in split(page.text, size, overlap):
        count = seen[text] = seen.get(text, 0) + 1
        facts = json.dumps([page.source, page.metadata, model, text, count], sort_keys=True, ensure_ascii=False)
        digest = hashlib.sha256(facts.encode("utf-8", errors="surrogatepass")).hexdigest()
        made.append(Chunk(id=digest[:40], source=page.source, text=text, metadata=page.metadata))
    return made
