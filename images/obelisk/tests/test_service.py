"""The service: the store follows the vault, whatever happens in between."""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from obelisk.rag.config import Settings
from obelisk.rag.models import Ask, ModelError
from obelisk.rag.service import Found, Rag
from obelisk.rag.split import Chunk
from obelisk.rag.store import Hit, StoreError
from obelisk.rag.store.memory import MemoryStore


def run(work):
    return asyncio.run(work)


class CountingStore(MemoryStore):
    """A store that can be away, and says how often it was written to."""

    def __init__(self) -> None:
        super().__init__()
        self.away = False
        self.writes = 0

    def _reach(self) -> None:
        if self.away:
            raise StoreError("the store is away")

    def check(self):
        self._reach()

    def sources(self):
        self._reach()
        return super().sources()

    def ids(self, source):
        self._reach()
        return super().ids(source)

    def upsert(self, chunks, vectors):
        self._reach()
        self.writes += 1
        super().upsert(chunks, vectors)

    def delete(self, ids):
        self._reach()
        self.writes += bool(ids)
        super().delete(ids)


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not true():
            await asyncio.sleep(0.01)


def test_the_vault_is_indexed_once(settings, models):
    async def work():
        rag = Rag(settings, CountingStore())
        first = await rag.sync()
        assert (first.pages, first.embedded, first.removed) == (3, 3, 0)
        assert sorted(models.embedded_texts()) == sorted(
            ["# Obelisk\n\nA vault of notes.", "# Cats\n\nThe caracal is a medium-sized wildcat with tufted ears.",
             "# Birds\n\nThe hoopoe wears a crown of feathers."]
        )
        writes = rag.store.writes
        second = await rag.sync()
        assert (second.embedded, second.removed, rag.store.writes) == (0, 0, writes)
        # Another process with the same store embeds nothing either.
        other = Rag(settings, rag.store)
        third = await other.sync()
        assert (third.embedded, third.removed, rag.store.writes) == (0, 0, writes)
        await rag.close()
        await other.close()

    run(work())


def test_a_refused_page_holds_up_nobody_and_is_tried_again_when_it_changes(settings, vault, models):
    async def work():
        models.forbidden = "hoopoe"
        rag = Rag(settings, CountingStore())
        first = await rag.sync()
        assert (first.pages, first.embedded, first.skipped) == (3, 2, 1) and rag.indexed
        asked = len(models.requests)
        assert (await rag.sync()).skipped == 0 and len(models.requests) == asked, "not every two seconds"
        assert list(rag.skipped()) == ["animals/birds.markdown"]
        (vault / "animals/birds.markdown").write_text("# Birds\n\nThe wren is small and loud.\n")
        again = await rag.sync()
        assert (again.embedded, again.skipped, rag.skipped()) == (1, 0, {})
        await rag.close()

    run(work())


def test_what_a_refused_page_no_longer_says_is_gone(settings, vault, models):
    async def work():
        rag = Rag(settings, CountingStore())
        await rag.sync()
        models.forbidden = "magpie"
        (vault / "animals/birds.markdown").write_text("# Birds\n\nThe magpie takes what shines.\n")
        changes = await rag.sync()
        assert (changes.embedded, changes.removed, changes.skipped) == (0, 1, 1)
        assert list(rag.skipped()) == ["animals/birds.markdown"]
        texts = [hit.chunk.text for hit in (await rag.find("hoopoe crown feathers")).hits]
        assert texts and not any("hoopoe" in text for text in texts), texts
        # A model that refuses everything proves nothing about a page.
        models.refusal = (400, "no such model")
        (vault / "animals/cats.md").write_text("# Cats\n\nThe ocelot swims.\n")
        with pytest.raises(ModelError):
            await rag.sync()
        models.refusal = None
        assert rag.store.ids("animals/cats.md")
        await rag.close()

    run(work())


def test_edits_renames_and_deletions_are_followed(settings, vault):
    async def work():
        rag = Rag(settings)
        await rag.sync()
        (vault / "animals/cats.md").write_text("# Cats\n\nThe serval jumps three metres high.\n")
        (vault / "animals/birds.markdown").rename(vault / "birds.md")
        (vault / "index.md").unlink()
        changes = await rag.sync()
        assert (changes.embedded, changes.removed) == (2, 3)
        assert rag.store.sources() == {"animals/cats.md", "birds.md"}
        assert rag.stats()["document_count"] == 2
        texts = [hit.chunk.text for hit in (await rag.find("serval jumps")).hits]
        assert "serval" in texts[0] and not any("caracal" in text for text in texts)
        await rag.close()

    run(work())


def test_a_vault_that_vanishes_deletes_nothing(settings, vault):
    async def work():
        rag = Rag(settings)
        await rag.sync()
        vault.rename(vault.with_name("elsewhere"))
        with pytest.raises(OSError):
            await rag.sync()
        assert rag.store.count() == 3
        assert "vault" in await rag.problems()
        await rag.close()

    run(work())


def test_the_index_heals_after_failures(settings, vault, models):
    async def work():
        store = CountingStore()
        store.away = True
        rag = Rag(settings, store)
        task = asyncio.create_task(rag.keep_in_sync())
        await until(lambda: rag.counters.failures.get("index", 0) >= 1)
        assert not rag.indexed
        store.away = False
        await until(lambda: rag.indexed)
        # A page is deleted and another written while the model is away.
        models.refusal = (400, "no such model")
        (vault / "index.md").unlink()
        (vault / "new.md").write_text("# New\n\nThe okapi has striped legs.\n")
        failed = rag.counters.failures["index"]
        await until(lambda: rag.counters.failures["index"] > failed)
        models.refusal = None
        await until(lambda: store.sources() == {"animals/birds.markdown", "animals/cats.md", "new.md"})
        # Somebody empties the store; after any failure everything is compared.
        store.delete({id for source in store.sources() for id in store.ids(source)})
        store.away = True
        (vault / "new.md").touch()
        failed = rag.counters.failures["index"]
        await until(lambda: rag.counters.failures["index"] > failed)
        store.away = False
        await until(lambda: MemoryStore.count(store) == 3)
        task.cancel()
        await rag.close()

    run(work())


def test_without_watching_the_vault_is_indexed_once_and_no_more(settings, vault):
    async def work():
        rag = Rag(Settings(**{**vars(settings), "watch_docs": False}))
        await asyncio.wait_for(rag.keep_in_sync(), 20)
        assert rag.indexed
        await rag.close()

    run(work())


def test_one_page_can_be_indexed_alone(settings, vault):
    async def work():
        rag = Rag(settings)
        changes = await rag.sync_from(vault / "animals/cats.md")
        assert (changes.embedded, rag.store.sources()) == (1, {"animals/cats.md"})
        with pytest.raises(OSError):
            await rag.sync_from(vault.parent / "outside.md")
        await rag.close()

    run(work())


def test_an_answer_is_made_from_what_was_found(settings, models):
    async def work():
        rag = Rag(settings)
        await rag.sync()
        found = await rag.find("Which wildcat has tufted ears?", 1)
        assert [hit.chunk.source for hit in found.hits] == ["animals/cats.md"]
        ask = Ask([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Which wildcat?"}], 0.1, 9)
        answer = "".join([piece async for piece in rag.answer("Which wildcat?", found, ask)])
        assert "caracal" in answer and "Question: Which wildcat?" in answer
        body = models.requests[-1][2]
        assert body["messages"][0] == {"role": "system", "content": "Be brief."}
        assert body["options"] == {"temperature": 0.1, "num_predict": 9}
        await rag.close()

    run(work())


def test_questions_and_pages_may_hold_braces(settings, tmp_path):
    template = tmp_path / "template"
    template.write_text("<{context}|{question}|{other}>")
    rag = Rag(Settings(**{**vars(settings), "rag_template_path": template}))
    hit = Hit(Chunk("1", "a.md", "{question} {0} {context}", {}), 1.0)
    told = rag.instruct("what is {context}?", Found([hit]))
    assert told == "<Document 1 (a.md):\n{question} {0} {context}|what is {context}?|{other}>"
    assert rag.instruct("q", Found([])) == "q"
    run(rag.close())


@pytest.mark.parametrize("provider", ["ollama", "litellm", "openai"])
def test_providers_embed_and_write_alike(settings, models, provider):
    async def work():
        rag = Rag(
            Settings(
                **{
                    **vars(settings),
                    "embedding_provider": provider,
                    "completion_provider": provider,
                    "litellm_api_url": models.url,
                    "litellm_api_key": "sk-l",
                    "openai_api_base": f"{models.url}/v1",
                    "openai_api_key": "sk-o",
                }
            )
        )
        texts = [f"text number {number}" for number in range(40)]
        vectors = await rag.embedder.embed(texts)
        assert len(vectors) == 40
        assert vectors[17] == (await rag.embedder.embed([texts[17]]))[0]
        pieces = [piece async for piece in rag.writer.write(Ask([{"role": "user", "content": "one two three"}]))]
        assert "".join(pieces) == "You said: one two three" and len(pieces) == 5
        assert await rag.problems() == {"index": "the vault is being indexed for the first time"}
        sent = {header.get("authorization") for header in models.headers}
        assert sent == {{"ollama": None, "litellm": "Bearer sk-l", "openai": "Bearer sk-o"}[provider]}
        # A model that is still loading is asked again.
        models.failures = 2
        assert len(await rag.embedder.embed(["again"])) == 1
        models.failures = 1
        assert "".join([piece async for piece in rag.writer.write(Ask([{"role": "user", "content": "x"}]))])
        # What is wrong is said, and what was already passed on is not asked again.
        models.break_after = 2
        with pytest.raises(ModelError):
            async for _ in rag.writer.write(Ask([{"role": "user", "content": "one two three"}])):
                pass
        models.refusal = (404, "model not found, try pulling it first")
        with pytest.raises(ModelError, match="404 model not found, try pulling it first") as caught:
            await rag.embedder.embed(["x"])
        assert "sk-" not in str(caught.value)
        await rag.close()

    run(work())


def test_what_cannot_be_read_holds_up_nobody_and_stays_as_it_is_known(settings, vault, models, monkeypatch):
    async def work():
        store = CountingStore()
        rag = Rag(settings, store)
        await rag.sync()
        before = store.count()
        read, scan = Path.read_bytes, os.scandir

        def denied(path):
            if path.name == "index.md":
                raise PermissionError(13, "Permission denied", str(path))
            return read(path)

        def closed(path):
            if Path(path).name == "animals":
                raise PermissionError(13, "Permission denied", str(path))
            return scan(path)

        monkeypatch.setattr(Path, "read_bytes", denied)
        monkeypatch.setattr(os, "scandir", closed)
        (vault / "index.md").write_text("# Other\n\nIt says something else.\n")
        (vault / "new.md").write_text("# New\n\nIt is indexed all the same.\n")
        changes = await rag.sync()
        assert (changes.skipped, changes.removed, changes.embedded) == (1, 0, 1)
        assert rag.indexed and store.count() == before + 1
        assert rag.skipped()["index.md"] == "it cannot be read: Permission denied"

    run(work())
