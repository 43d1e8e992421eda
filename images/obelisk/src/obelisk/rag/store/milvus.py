"""A store in Milvus, or in Milvus Lite where the URI is a file.

The collection's description names the embedding model and its dimensions. Vectors of two models cannot be compared, so
a collection of another model is dropped and filled anew; the vault is the truth and the store only an index of it.
"""

import json
import logging
import threading
from collections.abc import Callable
from typing import Any

from pymilvus import DataType, MilvusClient
from pymilvus.exceptions import MilvusException

from obelisk.rag.config import Settings
from obelisk.rag.split import Chunk
from obelisk.rag.store import Hit, StoreError

log = logging.getLogger(__name__)

#: Rows a query returns at most; Milvus itself allows 16384.
PAGE = 1000

#: Ids named in one deletion.
BATCH = 500

#: Seconds that one call may take.
TIMEOUT = 20


class MilvusStore:
    """Connects at the first call, and again after a failure."""

    def __init__(self, settings: Settings) -> None:
        self.place = settings.milvus_uri
        self._settings = settings
        self._name = settings.milvus_collection
        self._model = settings.embedding_name()
        self._client: MilvusClient | None = None
        self._ready = False
        # Milvus Lite wants writes one after the other, and the collection must be made once.
        self._lock = threading.RLock()

    def check(self) -> None:
        self._call(lambda client: client.list_collections(timeout=TIMEOUT))

    def ids(self, source: str) -> set[str]:
        rows = self._rows(f"source == {json.dumps(source, ensure_ascii=False)}", "id")
        return {row["id"] for row in rows}

    def sources(self) -> set[str]:
        return {row["source"] for row in self._rows('id != ""', "source")}

    def upsert(self, chunks: list[Chunk], vectors: list[list[float]]) -> None:
        if not chunks:
            return
        dimensions = len(vectors[0])
        if any(len(vector) != dimensions for vector in vectors):
            raise StoreError("the vectors of one upsert differ in their dimensions")
        rows = [
            {
                "id": chunk.id,
                "source": chunk.source,
                "text": chunk.text,
                "metadata": chunk.metadata,
                "vector": vector,
            }
            for chunk, vector in zip(chunks, vectors, strict=True)
        ]

        def write(client: MilvusClient) -> None:
            self._prepare(client, dimensions)
            client.upsert(self._name, rows, timeout=TIMEOUT)

        self._call(write)

    def delete(self, ids: set[str]) -> None:
        ordered = sorted(ids)

        def write(client: MilvusClient) -> None:
            if self._usable(client):
                for start in range(0, len(ordered), BATCH):
                    client.delete(self._name, ids=ordered[start : start + BATCH], timeout=TIMEOUT)

        if ordered:
            self._call(write)

    def search(self, vector: list[float], limit: int) -> list[Hit]:
        def read(client: MilvusClient) -> list[Hit]:
            if not self._usable(client):
                return []
            found = client.search(
                self._name,
                data=[vector],
                limit=limit,
                output_fields=["source", "text", "metadata"],
                search_params={"metric_type": "COSINE"},
                timeout=TIMEOUT,
            )
            return [_hit(row) for row in found[0]]

        return self._call(read)

    def count(self) -> int:
        def read(client: MilvusClient) -> int:
            if not self._usable(client):
                return 0
            rows = client.query(self._name, filter="", output_fields=["count(*)"], timeout=TIMEOUT)
            return int(rows[0]["count(*)"])

        return self._call(read)

    def close(self) -> None:
        with self._lock:
            if self._client is not None:
                self._client.close()
            self._client, self._ready = None, False

    def _call[T](self, work: Callable[[MilvusClient], T]) -> T:
        with self._lock:
            try:
                if self._client is None:
                    self._client = MilvusClient(
                        uri=self.place,
                        token=str(self._settings.milvus_token),
                        db_name=self._settings.milvus_db,
                        timeout=TIMEOUT,
                    )
                return work(self._client)
            # pymilvus lets errors of gRPC and of its own checks through.
            except Exception as error:
                self._forget()
                if isinstance(error, StoreError):
                    raise
                reason = error.message if isinstance(error, MilvusException) else str(error) or type(error).__name__
                raise StoreError(f"Milvus at {self.place}: {reason}") from error

    def _forget(self) -> None:
        client, self._client, self._ready = self._client, None, False
        if client is not None:
            try:
                client.close()
            except Exception:  # a broken connection may also fail to close
                log.debug("closing the connection to %s failed", self.place, exc_info=True)

    def _usable(self, client: MilvusClient) -> bool:
        """Whether the collection is there and of this model; then it is also loaded."""
        if self._ready:
            return True
        if not client.has_collection(self._name, timeout=TIMEOUT):
            return False
        said = client.describe_collection(self._name, timeout=TIMEOUT).get("description", "")
        if not said.startswith(f"{self._model} "):
            log.warning("collection %s holds vectors of `%s` and is dropped", self._name, said)
            client.drop_collection(self._name, timeout=TIMEOUT)
            return False
        client.load_collection(self._name, timeout=TIMEOUT)
        self._ready = True
        return True

    def _prepare(self, client: MilvusClient, dimensions: int) -> None:
        description = f"{self._model} {dimensions}"
        if self._usable(client):
            said = client.describe_collection(self._name, timeout=TIMEOUT).get("description", "")
            if said == description:
                return
            log.warning("collection %s holds vectors of `%s`, not `%s`, and is dropped", self._name, said, description)
            client.drop_collection(self._name, timeout=TIMEOUT)
        schema = client.create_schema(auto_id=False, enable_dynamic_field=False, description=description)
        schema.add_field("id", DataType.VARCHAR, is_primary=True, max_length=64)
        schema.add_field("source", DataType.VARCHAR, max_length=4096)
        schema.add_field("text", DataType.VARCHAR, max_length=65535)
        schema.add_field("metadata", DataType.JSON)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=dimensions)
        index = client.prepare_index_params()
        index.add_index("vector", index_type="HNSW", metric_type="COSINE", params={"M": 16, "efConstruction": 200})
        # Strong: what was just written is found by the next question.
        client.create_collection(
            self._name, schema=schema, index_params=index, consistency_level="Strong", timeout=TIMEOUT
        )
        client.load_collection(self._name, timeout=TIMEOUT)
        self._ready = True

    def _rows(self, condition: str, column: str) -> list[dict[str, Any]]:
        """All rows that meet a condition, page by page in the order of their ids."""

        def read(client: MilvusClient) -> list[dict[str, Any]]:
            rows: list[dict[str, Any]] = []
            if not self._usable(client):
                return rows
            pages = client.query_iterator(
                self._name, batch_size=PAGE, filter=condition, output_fields=["id", column], timeout=TIMEOUT
            )
            try:
                while page := pages.next():
                    rows.extend(page)
            finally:
                pages.close()
            return rows

        return self._call(read)


def _hit(row: dict[str, Any]) -> Hit:
    entity = row["entity"]
    chunk = Chunk(row["id"], entity["source"], entity["text"], entity["metadata"] or {})
    return Hit(chunk, float(row["distance"]))
