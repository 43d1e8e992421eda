"""The service itself: keeps the store equal to the vault and finds what an answer needs.

One task owns the index: it compares the vault with what it has indexed, embeds only chunks that the store lacks, removes
those that are gone, and after a failure compares everything again. So a page that was written, renamed or deleted while
Milvus or the model was away is right once both are back, and a second run changes nothing. A page that the model refuses
is out of the way of the others; what it no longer says is removed, so no answer quotes it, and what it still says stays.
It is tried again when it changes and whenever everything is compared.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from obelisk.rag import models, split
from obelisk.rag.config import Settings
from obelisk.rag.models import Ask, ModelError, Refused
from obelisk.rag.store import Hit, Store, StoreError, open_store
from obelisk.rag.vault import Stamp, Unreadable, Vault

log = logging.getLogger(__name__)

#: Seconds after which everything is compared although nothing failed: someone may have emptied the store.
RECHECK = 300.0

#: Longest pause between two tries to reach what is away. Seconds.
MAX_PAUSE = 30.0

INSTRUCTION = """\
Use the following information to answer the user's question. If the information doesn't contain the answer, say you \
don't know. Name the sources that you used.

Context from documentation:
{context}

Question: {question}"""


@dataclass
class Changes:
    """What one comparison of the vault did."""

    pages: int = 0
    embedded: int = 0
    removed: int = 0
    unchanged: int = 0
    skipped: int = 0


@dataclass
class Counters:
    """What happened since the start, for `/metrics`."""

    embedded: int = 0
    removed: int = 0
    questions: int = 0
    failures: dict[str, int] = field(default_factory=dict)

    def failed(self, what: str) -> None:
        """Counts a failure of a part."""
        self.failures[what] = self.failures.get(what, 0) + 1


@dataclass(frozen=True)
class Found:
    """What was found for a question."""

    hits: list[Hit]

    def context(self) -> str:
        """The chunks as a model reads them."""
        return "\n\n".join(
            f"Document {place} ({hit.chunk.source}):\n{hit.chunk.text}" for place, hit in enumerate(self.hits, 1)
        )

    def sources(self) -> list[dict[str, object]]:
        """The chunks as a client reads them."""
        return [
            {
                "content": hit.chunk.text if len(hit.chunk.text) <= 200 else hit.chunk.text[:200] + "...",
                "source": hit.chunk.source,
                "title": hit.chunk.metadata.get("title"),
                "score": round(hit.score, 4),
            }
            for hit in self.hits
        ]


class Rag:
    """Retrieval over one vault."""

    def __init__(
        self, settings: Settings, store: Store | None = None, client: httpx.AsyncClient | None = None
    ) -> None:
        self.settings = settings
        self.vault = Vault(settings.vault_dir)
        self.store = store if store is not None else open_store(settings)
        timeout = httpx.Timeout(settings.request_timeout, connect=5)
        self.client = client if client is not None else httpx.AsyncClient(timeout=timeout)
        self.embedder = models.embedder(settings, self.client)
        self.writer = models.writer(settings, self.client)
        self.counters = Counters()
        self.chunks = 0
        self.indexed = False
        self._refused: dict[str, str] = {}
        self._known: dict[str, Stamp] = {}
        self._checked: float | None = None
        self._lock = asyncio.Lock()
        self._template = INSTRUCTION
        if settings.rag_template_path is not None:
            self._template = settings.rag_template_path.read_text(encoding="utf-8")

    async def close(self) -> None:
        """Lets go of connections."""
        await self.client.aclose()
        await asyncio.to_thread(self.store.close)

    async def sync(self) -> Changes:
        """Makes the store equal to the vault. Raises StoreError or ModelError, and OSError if the vault cannot be
        read; then nothing is lost. A page that cannot be read or is refused is skipped."""
        async with self._lock:
            pages = await asyncio.to_thread(self.vault.scan)
            everything = self._checked is None or time.monotonic() - self._checked > RECHECK
            known = {} if everything else self._known
            # Until this comparison has come to its end, the next one must look at everything again.
            self._checked = None
            changes = Changes(pages=len(pages))
            gone = set(known) - set(pages)
            if everything:
                gone = await asyncio.to_thread(self.store.sources) - set(pages)
            for source in sorted(gone):
                if self.vault.is_unreadable(source):
                    continue
                changes.removed += await self._remove(source)
            for source, stamp in pages.items():
                if known.get(source) == stamp:
                    changes.unchanged += 1
                    continue
                self._refused.pop(source, None)
                try:
                    await self._index(source, changes)
                except Refused as error:
                    self._refused[source] = str(error)
                    changes.skipped += 1
                    self.counters.failed("page")
                    log.warning("page %s is skipped: its embedding was refused: %s", source, error)
                except Unreadable as error:
                    # What is known of it stays.
                    self._refused[source] = str(error)
                    changes.skipped += 1
                    self.counters.failed("page")
                    log.warning("page %s is skipped: %s", source, error)
            self._refused = {source: why for source, why in self._refused.items() if source in pages}
            self.chunks = await asyncio.to_thread(self.store.count)
            self._known, self._checked, self.indexed = pages, time.monotonic(), True
            self.counters.embedded += changes.embedded
            self.counters.removed += changes.removed
            return changes

    async def sync_from(self, path: Path) -> Changes:
        """Indexes another folder instead of the vault, or one page of the vault and nothing else."""
        if path.is_dir():
            self.vault = Vault(path)
            return await self.sync()
        page, root = path.resolve(), self.vault.root.resolve()
        if not page.is_relative_to(root) or not page.is_file():
            raise FileNotFoundError(f"{path} is neither a folder nor a page of the vault {self.vault.root}")
        changes = Changes(pages=1)
        async with self._lock:
            await self._index(page.relative_to(root).as_posix(), changes)
        return changes

    async def _index(self, source: str, changes: Changes) -> None:
        page = await asyncio.to_thread(self.vault.read, source)
        if page is None:
            changes.removed += await self._remove(source)
            return
        settings = self.settings
        made = split.chunks(page, settings.chunk_size, settings.chunk_overlap, settings.embedding_name())
        have = await asyncio.to_thread(self.store.ids, source)
        new = [chunk for chunk in made if chunk.id not in have]
        old = have - {chunk.id for chunk in made}
        if new:
            try:
                vectors = await self.embedder.embed([chunk.text for chunk in new])
            except Refused:
                await self._takes_anything()
                changes.removed += await self._delete(old)
                raise
            await asyncio.to_thread(self.store.upsert, new, vectors)
            changes.embedded += len(new)
        # After the new ones are in: a question in between finds the old text rather than nothing.
        changes.removed += await self._delete(old)
        if not new and not old:
            changes.unchanged += 1

    async def _takes_anything(self) -> None:
        """A model that refuses a single word refuses everything: that is no fault of a page."""
        try:
            await self.embedder.embed(["page"])
        except Refused as error:
            raise ModelError(str(error)) from error

    async def _remove(self, source: str) -> int:
        return await self._delete(await asyncio.to_thread(self.store.ids, source))

    async def _delete(self, ids: set[str]) -> int:
        if ids:
            await asyncio.to_thread(self.store.delete, ids)
        return len(ids)

    async def keep_in_sync(self) -> None:
        """Runs until it is cancelled; without `watch_docs` until the vault was indexed once."""
        pause = self.settings.watch_interval
        while True:
            try:
                changes = await self.sync()
            except (StoreError, ModelError, OSError) as error:
                self.counters.failed("index")
                log.warning("the index is behind the vault, next try in %.0f s: %s", pause, error)
                await asyncio.sleep(pause)
                pause = min(pause * 2, MAX_PAUSE)
                continue
            pause = self.settings.watch_interval
            if changes.embedded or changes.removed:
                log.info(
                    "indexed %d pages: %d chunks embedded, %d removed",
                    changes.pages,
                    changes.embedded,
                    changes.removed,
                )
            if not self.settings.watch_docs:
                return
            await asyncio.sleep(pause)

    async def find(self, question: str, limit: int | None = None) -> Found:
        """The chunks that are most similar to a question."""
        vectors = await self.embedder.embed([question])
        hits = await asyncio.to_thread(self.store.search, vectors[0], limit or self.settings.retrieve_top_k)
        return Found(hits)

    def instruct(self, question: str, found: Found) -> str:
        """The message that asks a model to answer from what was found; the question alone if nothing was."""
        if not found.hits:
            return question
        # Not str.format: pages and questions may hold braces.
        parts = self._template.split("{context}")
        return found.context().join(part.replace("{question}", question) for part in parts)

    def answer(self, question: str, found: Found, ask: Ask) -> AsyncIterator[str]:
        """Pieces of the answer to the last message of `ask`, which is replaced by the instruction."""
        self.counters.questions += 1
        messages = [*ask.messages[:-1], {"role": "user", "content": self.instruct(question, found)}]
        return self.writer.write(Ask(messages, ask.temperature, ask.max_tokens, ask.model, ask.finish))

    async def problems(self) -> dict[str, str]:
        """What keeps the service from answering, by part; empty if nothing does."""

        async def store() -> None:
            await asyncio.to_thread(self.store.check)

        async def vault() -> None:
            await asyncio.to_thread(self.vault.scan)

        parts = {
            "vault": vault(),
            "store": store(),
            "embedding": self.embedder.check(),
            "completion": self.writer.check(),
        }
        outcomes = await asyncio.gather(*parts.values(), return_exceptions=True)
        found: dict[str, str] = {}
        for name, outcome in zip(parts, outcomes, strict=True):
            if isinstance(outcome, (StoreError, ModelError, OSError)):
                found[name] = str(outcome)
            elif isinstance(outcome, BaseException):
                raise outcome
        if not self.indexed and not found:
            found["index"] = "the vault is being indexed for the first time"
        return found

    def skipped(self) -> dict[str, str]:
        """Pages that are not indexed as they are now, with the reason."""
        return {**self._refused, **dict.fromkeys(sorted(self.vault.unnamed), "its name is not UTF-8")}

    def stats(self) -> dict[str, object]:
        """Facts about the index, without asking anyone."""
        settings = self.settings
        return {
            "document_count": self.chunks,
            "page_count": len(self._known),
            "skipped_pages": self.skipped(),
            "indexed": self.indexed,
            "vector_db": settings.vector_db,
            "vector_db_path": self.store.place,
            "ollama_model": settings.completion_name(),
            "embedding_model": settings.embedding_name(),
            "vault_directory": str(settings.vault_dir),
        }
