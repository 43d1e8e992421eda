"""A store in Milvus, or in Milvus Lite where the URI is a file.

The name of the vectors' column stands for the embedding model. Vectors of two models cannot be compared, so a
collection of another model, or of other dimensions, is dropped and filled anew: the vault is the truth and the store
only an index of it. A collection that does not look like ours is never touched.
"""

import hashlib
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

#: Columns beside the vectors.
COLUMNS = frozenset({"id", "source", "text", "metadata"})


class MilvusStore:
    """Connects at the first call, and again after a failure."""

    def __init__(self, settings: Settings) -> None:
        self.place = settings.milvus_uri
        self._settings = settings
        self._name = settings.milvus_collection
        model = settings.embedding_name()
        self._vectors = "vector_" + hashlib.sha256(model.encode()).hexdigest()[:12]
        self._client: MilvusClient | None = None
        self._ready = False
        self._dimensions = 0
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
                self._vectors: vector,
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
                anns_field=self._vectors,
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

    def _usable(self, client: MilvusClient, dimensions: int | None = None) -> bool:
        """Whether the collection is there and of this model and these dimensions; then it is also loaded."""
        if self._ready and dimensions in (None, self._dimensions):
            return True
        if not client.has_collection(self._name, timeout=TIMEOUT):
            return False
        fields = {it["name"]: it for it in client.describe_collection(self._name, timeout=TIMEOUT)["fields"]}
        if not COLUMNS <= set(fields):
            raise StoreError(
                f"Milvus at {self.place}: collection {self._name} is not one of Obelisk's: choose another MILVUS_COLLECTION"
            )
        known = int(fields[self._vectors]["params"]["dim"]) if self._vectors in fields else None
        if known is None or dimensions not in (None, known):
            log.warning("collection %s holds vectors of another model and is dropped", self._name)
            self._ready = False
            client.drop_collection(self._name, timeout=TIMEOUT)
            return False
        client.load_collection(self._name, timeout=TIMEOUT)
        self._ready, self._dimensions = True, known
        return True

    def _prepare(self, client: MilvusClient, dimensions: int) -> None:
        if self._usable(client, dimensions):
            return
        schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("id", DataType.VARCHAR, is_primary=True, max_length=64)
        schema.add_field("source", DataType.VARCHAR, max_length=4096)
        schema.add_field("text", DataType.VARCHAR, max_length=65535)
        schema.add_field("metadata", DataType.JSON)
        schema.add_field(self._vectors, DataType.FLOAT_VECTOR, dim=dimensions)
        index = client.prepare_index_params()
        index.add_index(
            self._vectors, index_type="HNSW", metric_type="COSINE", params={"M": 16, "efConstruction": 200}
        )
        # Strong: what was just written is found by the next question.
        client.create_collection(
            self._name, schema=schema, index_params=index, consistency_level="Strong", timeout=TIMEOUT
        )
        client.load_collection(self._name, timeout=TIMEOUT)
        self._ready, self._dimensions = True, dimensions

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
