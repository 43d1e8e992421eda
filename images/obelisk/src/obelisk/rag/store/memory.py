"""A store in this process: for development and tests. What it holds ends with it."""

import math
import threading

from obelisk.rag.split import Chunk
from obelisk.rag.store import Hit, StoreError


class MemoryStore:
    """Compares a question with every chunk, which is quick for a vault of some thousand."""

    place = "memory"

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: dict[str, tuple[Chunk, list[float]]] = {}

    def check(self) -> None:
        return None

    def ids(self, source: str) -> set[str]:
        with self._lock:
            return {id for id, (chunk, _) in self._held.items() if chunk.source == source}

    def sources(self) -> set[str]:
        with self._lock:
            return {chunk.source for chunk, _ in self._held.values()}

    def upsert(self, chunks: list[Chunk], vectors: list[list[float]]) -> None:
        with self._lock:
            known = next((len(vector) for _, vector in self._held.values()), None)
            for chunk, vector in zip(chunks, vectors, strict=True):
                if known is not None and len(vector) != known:
                    raise StoreError(f"memory holds vectors of {known} dimensions, not of {len(vector)}")
                known = len(vector)
                self._held[chunk.id] = (chunk, _unit(vector))

    def delete(self, ids: set[str]) -> None:
        with self._lock:
            for id in ids:
                self._held.pop(id, None)

    def search(self, vector: list[float], limit: int) -> list[Hit]:
        wanted = _unit(vector)
        with self._lock:
            held = list(self._held.values())
        if held and len(held[0][1]) != len(wanted):
            raise StoreError(f"memory holds vectors of {len(held[0][1])} dimensions, not of {len(wanted)}")
        hits = [Hit(chunk, math.sumprod(wanted, known)) for chunk, known in held]
        hits.sort(key=lambda hit: (-hit.score, hit.chunk.id))
        return hits[:limit]

    def count(self) -> int:
        with self._lock:
            return len(self._held)

    def close(self) -> None:
        return None


def _unit(vector: list[float]) -> list[float]:
    length = math.sqrt(math.sumprod(vector, vector))
    return [part / length for part in vector] if length else list(vector)
