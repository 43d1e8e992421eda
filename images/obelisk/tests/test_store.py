"""What every store must do, on each of them. Milvus is Milvus Lite, a server of its own on a real port."""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from obelisk.rag.config import Settings
from obelisk.rag.split import Chunk
from obelisk.rag.store import Store, StoreError, open_store


def chunk(id: str, source: str = "a.md", text: str = "text") -> Chunk:
    return Chunk(id=id, source=source, text=text, metadata={"title": "T", "n": 1})


@pytest.fixture(scope="module")
def milvus_uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = tmp_path_factory.mktemp("milvus")
    program = Path(sys.executable).parent / "milvus-lite"
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(
            [program, "server", "--data-dir", folder / "data", "--host", "127.0.0.1", "--port", str(port)],
            stdout=log,
            stderr=log,
        )
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert server.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(30)


@pytest.fixture(params=["memory", "milvus"])
def store(request: pytest.FixtureRequest) -> Iterator[Store]:
    if request.param == "memory":
        settings = Settings(vector_db="memory")
    else:
        name = "c_" + "".join(letter if letter.isalnum() else "_" for letter in request.node.name)
        uri = request.getfixturevalue("milvus_uri")
        settings = Settings(vector_db="milvus", milvus_uri=uri, milvus_collection=name)
    opened = open_store(settings)
    yield opened
    opened.close()


def test_an_empty_store_answers(store):
    store.check()
    assert (store.count(), store.sources(), store.ids("a.md"), store.search([1.0, 0.0], 3)) == (0, set(), set(), [])
    store.delete({"nothing"})


def test_what_was_put_in_is_found_best_first(store):
    store.upsert([chunk("1"), chunk("2", "b.md", "other"), chunk("3", "b.md")], [[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
    hits = store.search([2.0, 0.0], 2)
    assert [hit.chunk for hit in hits] == [chunk("1"), chunk("2", "b.md", "other")]
    assert [round(hit.score, 3) for hit in hits] == [1.0, 0.6]
    assert (store.count(), store.sources(), store.ids("b.md")) == (3, {"a.md", "b.md"}, {"2", "3"})


def test_an_id_is_replaced_and_not_doubled(store):
    store.upsert([chunk("1", text="old")], [[1.0, 0.0]])
    store.upsert([chunk("1", text="new")], [[1.0, 0.0]])
    assert (store.count(), store.search([1.0, 0.0], 5)[0].chunk.text) == (1, "new")


def test_what_was_deleted_is_not_found(store):
    store.upsert([chunk("1"), chunk("2", "b.md")], [[1.0, 0.0], [0.0, 1.0]])
    store.delete({"1", "unknown"})
    assert (store.count(), store.sources()) == (1, {"b.md"})
    assert [hit.chunk.id for hit in store.search([1.0, 0.0], 5)] == ["2"]


@pytest.mark.parametrize("source", ['qu"ote.md', "back\\slash.md", "it's.md", "ünï/cödé 日本.md", "a' or id != '"])
def test_paths_hold_any_character(store, source):
    store.upsert([chunk("1", source), chunk("2", "other.md")], [[1.0, 0.0], [0.0, 1.0]])
    assert store.ids(source) == {"1"}
    assert store.sources() == {source, "other.md"}


def test_many_chunks_are_listed_and_deleted(store):
    count = 2500
    vectors = [[1.0, at / count] for at in range(count)]
    for start in range(0, count, 500):
        batch = range(start, start + 500)
        store.upsert([chunk(f"{at:05}", f"{at % 1250}.md") for at in batch], vectors[start : start + 500])
    assert (store.count(), len(store.sources()), store.ids("7.md")) == (count, 1250, {"00007", "01257"})
    store.delete({f"{at:05}" for at in range(count - 1)})
    assert (store.count(), store.sources()) == (1, {"1249.md"})


def test_long_texts_survive(store):
    text = "日" * 16000
    store.upsert([chunk("1", text=text)], [[1.0, 0.0]])
    assert store.search([1.0, 0.0], 1)[0].chunk.text == text


def test_vectors_of_one_call_have_one_length(store):
    with pytest.raises(StoreError):
        store.upsert([chunk("1"), chunk("2")], [[1.0, 0.0], [1.0]])


def test_a_collection_of_another_model_is_filled_anew(milvus_uri):
    def opened(model: str) -> Store:
        return open_store(Settings(milvus_uri=milvus_uri, milvus_collection="models", embedding_model=model))

    first = opened("first")
    first.upsert([chunk("1")], [[1.0, 0.0]])
    assert opened("first").count() == 1
    second = opened("second")
    assert second.count() == 0
    second.upsert([chunk("2")], [[1.0, 0.0, 0.0]])
    assert [hit.chunk.id for hit in second.search([1.0, 0.0, 0.0], 5)] == ["2"]


def test_a_collection_of_somebody_else_is_not_touched(milvus_uri):
    from pymilvus import MilvusClient

    client = MilvusClient(uri=milvus_uri)
    client.create_collection("theirs", dimension=2)
    store = open_store(Settings(milvus_uri=milvus_uri, milvus_collection="theirs"))
    with pytest.raises(StoreError, match="not one of Obelisk's"):
        store.upsert([chunk("1")], [[1.0, 0.0]])
    assert client.has_collection("theirs")
    client.close()


def test_a_store_that_is_away_says_where():
    store = open_store(Settings(milvus_uri="http://127.0.0.1:9", milvus_token="canary:canary"))
    with pytest.raises(StoreError, match=r"http://127\.0\.0\.1:9") as caught:
        store.count()
    assert "canary" not in str(caught.value)
