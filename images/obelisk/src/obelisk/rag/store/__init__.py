"""Stores: where chunks lie with their vectors. Every store answers alike; `tests/test_store.py` runs on each."""

from dataclasses import dataclass
from typing import Protocol

from obelisk.rag.config import Settings
from obelisk.rag.split import Chunk


class StoreError(Exception):
    """The store does not do what it was asked; the message says where it is and why."""


@dataclass(frozen=True)
class Hit:
    """A chunk that was found, with its cosine similarity to the question."""

    chunk: Chunk
    score: float


class Store(Protocol):
    """Blocking, and safe to call from several threads. Each method raises StoreError."""

    #: Names it to a person, without secrets.
    place: str

    def check(self) -> None:
        """Raises if the store cannot be reached."""

    def ids(self, source: str) -> set[str]:
        """The ids of a page's chunks."""

    def sources(self) -> set[str]:
        """All pages that have chunks."""

    def upsert(self, chunks: list[Chunk], vectors: list[list[float]]) -> None:
        """Adds chunks or replaces those of the same id. The first call fixes the number of dimensions."""

    def delete(self, ids: set[str]) -> None:
        """Removes chunks by id."""

    def search(self, vector: list[float], limit: int) -> list[Hit]:
        """The most similar chunks, best first."""

    def count(self) -> int:
        """How many chunks there are."""

    def close(self) -> None:
        """Lets go of connections."""


def open_store(settings: Settings) -> Store:
    """The store that the settings choose. Nothing is reached before the first call."""
    # Imported when chosen: pymilvus alone takes longer to load than everything else.
    if settings.vector_db == "memory":
        from obelisk.rag.store.memory import MemoryStore

        return MemoryStore()
    from obelisk.rag.store.milvus import MilvusStore

    return MilvusStore(settings)
