"""The service over HTTP, on a real port, with a client that knows nothing of its insides."""

import base64
import json
import os
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
import uvicorn

from obelisk.rag.api import create_app
from obelisk.rag.config import Secret, Settings
from obelisk.rag.service import Rag

TOKEN = "canary-token"


class Served:
    """The service in a thread."""

    def __init__(self, settings: Settings) -> None:
        config = uvicorn.Config(create_app(Rag(settings)), host="127.0.0.1", port=0, log_config=None)
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run)
        self.thread.start()
        wait(lambda: self.server.started)
        port = self.server.servers[0].sockets[0].getsockname()[1]
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30)

    def close(self) -> None:
        self.client.close()
        self.server.should_exit = True
        self.thread.join()


def wait(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline, "it did not happen in 30 s"
        time.sleep(0.02)


@pytest.fixture
def serve() -> Iterator[Callable[[Settings], httpx.Client]]:
    running: list[Served] = []

    def start(settings: Settings) -> httpx.Client:
        running.append(Served(settings))
        return running[-1].client

    yield start
    for served in running:
        served.close()


@pytest.fixture
def client(serve, settings) -> httpx.Client:
    client = serve(settings)
    wait(lambda: client.get("/readyz").status_code == 200)
    return client


def asked(question: str, **more: object) -> dict[str, object]:
    return {"model": "obelisk-rag", "messages": [{"role": "user", "content": question}], **more}


def events(response: httpx.Response) -> list[dict]:
    lines = [line for line in response.text.split("\n\n") if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def test_an_answer_quotes_the_vault_and_names_its_sources(client):
    response = client.post("/v1/chat/completions", json=asked("Which wildcat has tufted ears?"))
    body = response.json()
    assert response.status_code == 200
    assert (body["object"], body["model"]) == ("chat.completion", "obelisk-rag")
    assert "caracal" in body["choices"][0]["message"]["content"]
    assert body["choices"][0]["finish_reason"] == "stop"
    assert body["sources"][0]["source"] == "animals/cats.md" and body["sources"][0]["title"] == "Cats"
    assert body["usage"]["total_tokens"] == body["usage"]["prompt_tokens"] + body["usage"]["completion_tokens"] > 5


def test_an_answer_is_streamed_piece_by_piece(client):
    request = asked("Which wildcat has tufted ears?", stream=True, stream_options={"include_usage": True})
    response = client.post("/v1/chat/completions", json=request)
    assert response.headers["content-type"].startswith("text/event-stream")
    parts = events(response)
    text = "".join(choice["delta"].get("content", "") for part in parts for choice in part["choices"])
    assert "caracal" in text and len(parts) > 5
    assert parts[0]["choices"][0]["delta"]["role"] == "assistant"
    assert [part["choices"][0]["finish_reason"] for part in parts[:-1]] == [None] * (len(parts) - 2) + ["stop"]
    assert parts[-2]["sources"][0]["source"] == "animals/cats.md"
    assert parts[-1]["choices"] == [] and parts[-1]["usage"]["completion_tokens"] == len(text.split())
    assert len({part["id"] for part in parts}) == 1


def test_a_page_is_quoted_once_it_is_there_and_no_more_once_it_is_gone(client, vault):
    page = vault / "new/okapi.md"
    page.parent.mkdir()
    page.write_text("# Okapi\n\nThe okapi has zebra stripes on its legs.\n")
    question = asked("Which animal has zebra stripes on its legs?")

    def answer() -> str:
        return client.post("/v1/chat/completions", json=question).json()["choices"][0]["message"]["content"]

    wait(lambda: "The okapi has zebra" in answer())
    page.unlink()
    wait(lambda: "The okapi has zebra" not in answer())
    assert "new/okapi.md" not in client.post("/v1/search", json={"query": "okapi"}).text


def test_the_conversation_and_its_settings_reach_the_model(client, models):
    request = {
        "model": "obelisk-rag/other-model",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hello"},
            {"role": "assistant", "content": "Hi"},
            {"role": "user", "content": [{"type": "text", "text": "Which wildcat"}, {"type": "text", "text": "has ears?"}]},
        ],
        "temperature": 0.2,
        "max_tokens": 50,
        "unknown_field": True,
    }
    assert client.post("/v1/chat/completions", json=request).status_code == 200
    sent = [body for _, path, body in models.requests if path == "/api/chat"][-1]
    assert sent["model"] == "other-model"
    assert [message["role"] for message in sent["messages"]] == ["system", "user", "assistant", "user"]
    assert "Which wildcat\nhas ears?" in sent["messages"][-1]["content"]
    assert sent["options"] == {"temperature": 0.2, "num_predict": 50}


@pytest.mark.parametrize(
    ("body", "status", "detail"),
    [
        ({"messages": []}, 400, "No user messages found in the request"),
        ({"messages": [{"role": "user", "content": " "}]}, 400, "No user messages found in the request"),
        ({}, 422, None),
        ({"messages": [{"role": "user", "content": "x"}], "temperature": 9}, 422, None),
        ({"messages": [{"role": "user", "content": "x"}], "max_tokens": 0}, 422, None),
    ],
)
def test_requests_that_make_no_sense_are_refused(client, body, status, detail):
    response = client.post("/v1/chat/completions", json=body)
    assert response.status_code == status
    assert detail is None or response.json() == {"detail": detail}


def test_a_model_that_refuses_is_a_bad_gateway_streamed_or_not(client, models):
    for stream in (False, True):
        models.refusal = (404, "model not found")
        response = client.post("/v1/chat/completions", json=asked("Which?", stream=stream))
        assert response.status_code == 502 and "model not found" in response.json()["detail"]
        models.refusal = None


def test_a_stream_that_breaks_says_so(client, models):
    models.break_after = 3
    response = client.post("/v1/chat/completions", json=asked("Which?", stream=True))
    last, done = response.text.strip().split("\n\n")[-2:]
    assert response.status_code == 200 and "error" in json.loads(last.removeprefix("data: ")) and done == "data: [DONE]"


@pytest.mark.parametrize("provider", ["ollama", "openai"])
@pytest.mark.parametrize("line", ['{"choices": [5], "message": "x"}', '{"choices": 5, "message": [1]}', "[]", "{",
                                  '{"choices": [{"delta": {"content": [1]}}], "message": {"content": {}}}'])
def test_a_malformed_piece_is_an_error_of_the_model(serve, settings, models, provider, line):
    client = serve(replace(settings, completion_provider=provider, openai_api_base=f"{models.url}/v1"))
    wait(lambda: client.get("/readyz").status_code == 200)
    models.malformed = line
    whole = client.post("/v1/chat/completions", json=asked("Which?"))
    assert whole.status_code == 502 and "answered with" in whole.json()["detail"]
    last, done = client.post("/v1/chat/completions", json=asked("Which?", stream=True)).text.strip().split("\n\n")[-2:]
    assert "answered with" in json.loads(last.removeprefix("data: "))["error"]["message"] and done == "data: [DONE]"


@pytest.mark.parametrize("provider", ["ollama", "openai"])
def test_why_an_answer_ended_is_passed_on(serve, settings, models, provider):
    client = serve(replace(settings, completion_provider=provider, openai_api_base=f"{models.url}/v1"))
    wait(lambda: client.get("/readyz").status_code == 200)
    models.finish = "length"
    assert client.post("/v1/chat/completions", json=asked("Which?")).json()["choices"][0]["finish_reason"] == "length"
    events = client.post("/v1/chat/completions", json=asked("Which?", stream=True)).text
    assert '"finish_reason": "length"' in events and '"finish_reason": "stop"' not in events


@pytest.mark.parametrize("body", [
    '{"messages": [{"role": "user", "content": "\\ud800"}]}',
    '{"messages": [{"role": "user", "content": [{"type": "text", "text": "\\ud800"}]}]}',
    '{"messages": [{"role": "user", "content": "x"}], "temperature": NaN}',
    '{"messages": [{"role": "user", "content": "x"}], "temperature": Infinity}',
])
def test_what_no_model_can_be_told_is_refused(client, body):
    response = client.post("/v1/chat/completions", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 422 and response.json()["detail"][0]["msg"], response.text


def test_null_is_unset_and_a_longer_name_is_another_model(client, models):
    response = client.post("/v1/chat/completions", json={**asked("Which?"), "stream": None})
    assert response.status_code == 200 and response.json()["choices"]
    body = {"input": "caracal", "encoding_format": None}
    assert isinstance(client.post("/v1/embeddings", json=body).json()["data"][0]["embedding"], list)
    for name, sent in [("obelisk-rag", "llama3"), ("obelisk-rag/x", "x"), ("obelisk-ragtime", "obelisk-ragtime")]:
        client.post("/v1/chat/completions", json={**asked("Which?"), "model": name})
        chats = [body for _, path, body in models.requests if path == "/api/chat"]
        assert chats[-1]["model"] == sent


def test_pages_that_cannot_be_indexed_are_told(serve, settings, vault, models):
    models.forbidden = "hoopoe"
    (vault / os.fsdecode(b"\xff.md")).write_text("# Odd\n")
    client = serve(settings)
    wait(lambda: client.get("/readyz").status_code == 200)
    skipped = client.get("/stats").json()["skipped_pages"]
    assert sorted(skipped) == ["\\udcff.md", "animals/birds.markdown"], skipped
    assert "exceeds the context length" in skipped["animals/birds.markdown"]
    assert "obelisk_rag_skipped_pages 2\n" in client.get("/metrics").text
    assert client.post("/v1/search", json={"query": "caracal wildcat"}).json()["hits"][0]["source"] == "animals/cats.md"


def test_models_and_embeddings_are_as_clients_expect(client):
    names = [model["id"] for model in client.get("/v1/models").json()["data"]]
    assert names == ["obelisk-rag", "obelisk-rag/llama3", "mxbai-embed-large"]
    body = {"model": "mxbai-embed-large", "input": ["caracal", "hoopoe"]}
    floats = client.post("/v1/embeddings", json=body).json()["data"]
    assert [it["index"] for it in floats] == [0, 1] and floats[0]["embedding"] != floats[1]["embedding"]
    packed = client.post("/v1/embeddings", json={**body, "encoding_format": "base64"}).json()["data"][0]["embedding"]
    numbers = struct.unpack(f"<{len(floats[0]['embedding'])}f", base64.b64decode(packed))
    assert numbers == pytest.approx(floats[0]["embedding"])
    assert client.post("/v1/embeddings", json={"input": []}).status_code == 400
    assert client.post("/v1/embeddings", json={"input": "one"}).json()["data"][0]["object"] == "embedding"


def test_a_search_gives_chunks_without_asking_a_model_to_write(client, models):
    body = client.post("/v1/search", json={"query": "crown of feathers", "top_k": 1}).json()
    assert [hit["source"] for hit in body["hits"]] == ["animals/birds.markdown"]
    assert "hoopoe" in body["hits"][0]["text"] and body["hits"][0]["metadata"]["title"] == "Birds"
    assert not [path for _, path, _ in models.requests if path == "/api/chat"]
    assert client.post("/v1/search", json={"query": ""}).status_code == 422


def test_the_service_is_alive_before_it_is_ready(serve, settings, models):
    models.refusal = (500, "no")
    client = serve(replace(settings, vector_db="milvus", milvus_uri="http://127.0.0.1:9"))
    assert client.get("/healthz").json()["status"] == "ok"
    stats = client.get("/stats").json()
    assert (stats["document_count"], stats["indexed"]) == (0, False)
    ready = client.get("/readyz")
    assert ready.status_code == 503
    assert set(ready.json()["problems"]) == {"store", "embedding", "completion"}
    failed = client.post("/v1/search", json={"query": "x"})
    assert failed.status_code == 502
    models.refusal = None
    failed = client.post("/v1/search", json={"query": "x"})
    assert failed.status_code == 503 and "Milvus at http://127.0.0.1:9" in failed.json()["detail"]


def test_stats_and_metrics_tell_what_is_there(client):
    client.post("/v1/chat/completions", json=asked("Which?"))
    client.get("/no/such/page")
    stats = client.get("/stats").json()
    assert (stats["document_count"], stats["page_count"], stats["ollama_model"]) == (3, 3, "llama3")
    text = client.get("/metrics").text
    for line in (
        "obelisk_rag_chunks 3",
        "obelisk_rag_indexed 1",
        "obelisk_rag_embedded_total 3",
        "obelisk_rag_questions_total 1",
        'obelisk_http_requests_total{method="POST",route="/v1/chat/completions",status="200"} 1',
        'obelisk_http_requests_total{method="GET",route="other",status="404"} 1',
    ):
        assert line in text.splitlines(), f"{line} is not in\n{text}"
    assert all(line.startswith(("#", "obelisk_")) for line in text.splitlines())


def test_a_token_guards_all_but_what_orchestrators_ask(serve, settings):
    client = serve(replace(settings, api_token=Secret(TOKEN)))
    for path in ("/healthz", "/readyz", "/metrics"):
        assert client.get(path).status_code in (200, 503)
    for header in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": TOKEN}, {"Authorization": f"Basic {TOKEN}"}):
        for path in ("/stats", "/v1/models", "/api/tags", "/docs", "/no/such/page"):
            refused = client.get(path, headers=header)
            assert refused.status_code == 401, path
            assert refused.headers["www-authenticate"] == "Bearer"
    assert client.get("/stats", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200


def test_ollamas_api_is_there_with_the_vault_behind_it(client, models):
    for prefix in ("/api", "/ollama/api"):
        assert client.get(f"{prefix}/tags").json() == {"models": [{"name": "llama3:latest"}]}
        body = {"model": "llama3", "prompt": "Which wildcat has tufted ears?", "stream": False}
        assert "caracal" in client.post(f"{prefix}/generate", json=body).json()["response"]
        chat = {"model": "llama3", "messages": [{"role": "user", "content": "Which wildcat has tufted ears?"}]}
        lines = client.post(f"{prefix}/chat", json=chat).text.splitlines()
        text = "".join((json.loads(line).get("message") or {}).get("content", "") for line in lines)
        assert "caracal" in text and json.loads(lines[-1])["done"] is True
    # A body that is not understood passes as it is.
    client.post("/api/chat", content=b"not json")
    assert b"not json" in [body for _, _, body in models.requests]
    assert client.get("/api/unheard-of").status_code == 403


def test_without_retrieval_ollama_answers_all_the_same(client, models, monkeypatch):
    async def broken(*_: object) -> None:
        from obelisk.rag.store import StoreError

        raise StoreError("away")

    monkeypatch.setattr(Rag, "find", broken)
    body = {"model": "llama3", "prompt": "Which wildcat?", "stream": False}
    assert client.post("/api/generate", json=body).json()["response"] == "You said: Which wildcat?"


def test_what_changes_ollama_needs_the_token(serve, settings, client, models):
    assert client.request("DELETE", "/api/delete", json={"model": "llama3"}).status_code == 403
    guarded = serve(replace(settings, api_token=Secret(TOKEN)))
    answer = guarded.request(
        "DELETE", "/api/delete", json={"model": "llama3"}, headers={"Authorization": f"Bearer {TOKEN}"}
    )
    assert answer.status_code == 404 and answer.json() == {"error": "no /api/delete here"}
    # Both services index meanwhile, so other requests may have come after it.
    deleted = [at for at, (method, *_) in enumerate(models.requests) if method == "DELETE"]
    assert [models.requests[at][1] for at in deleted] == ["/api/delete"]
    assert "authorization" not in models.headers[deleted[0]], "the token is for this service alone"


def test_a_vault_of_many_pages_is_searched(serve, settings, vault: Path):
    for number in range(120):
        (vault / f"page{number}.md").write_text(f"# Page\n\nnumber{'abcdefghij'[number % 10]} " * 3)
    client = serve(settings)
    wait(lambda: client.get("/readyz").status_code == 200)
    assert client.get("/stats").json()["page_count"] == 123
