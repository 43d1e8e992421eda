"""A vault, settings, and a model that is a process of its own on a real socket."""

import hashlib
import json
import math
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from obelisk.rag.config import Settings

DIMENSIONS = 64


def embedded(text: str) -> list[float]:
    """A bag of words: texts that share words are similar, which is all that these tests need."""
    vector = [0.0] * DIMENSIONS
    for word in re.findall(r"[a-z]{3,}", text.lower()):
        place = int.from_bytes(hashlib.sha256(word.encode()).digest()[:4], "big") % DIMENSIONS
        vector[place] += 1.0
    length = math.sqrt(sum(part * part for part in vector)) or 1.0
    return [part / length for part in vector] if any(vector) else [1.0, *vector[1:]]


class ModelServer:
    """Ollama and an OpenAI-compatible API. It answers with the last message it was given, word by word."""

    def __init__(self) -> None:
        self.lock = threading.Lock()  # keeps requests and headers in step
        self.requests: list[tuple[str, str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.failures = 0  # requests that are answered with 503 first
        self.refusal: tuple[int, str] | None = None
        self.break_after: int | None = None  # pieces of an answer after which the connection ends
        self.dimensions = DIMENSIONS
        self.forbidden: str | None = None  # a word that is not embedded
        self.malformed: str | None = None  # a line in place of the answer's second piece
        self.finish = "stop"
        models = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                return None

            def do_GET(self) -> None:
                models.handle(self, None)

            def do_POST(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                text = self.rfile.read(length)
                try:
                    body = json.loads(text)
                except ValueError:
                    body = text
                models.handle(self, body)

            do_DELETE = do_POST

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def embedded_texts(self) -> list[str]:
        """All texts that were embedded."""
        return [text for _, path, body in self.requests if path.endswith(("/embed", "/embeddings")) for text in body["input"]]

    def handle(self, http: BaseHTTPRequestHandler, body: Any) -> None:
        with self.lock:
            self.requests.append((http.command, http.path, body))
            self.headers.append({name.lower(): value for name, value in http.headers.items()})
        if self.failures:
            self.failures -= 1
            return self.whole(http, 503, {"error": "loading"})
        if self.refusal is not None:
            return self.whole(http, self.refusal[0], {"error": self.refusal[1]})
        path = http.path.partition("?")[0]
        if path.endswith(("/embed", "/embeddings")) and any((self.forbidden or "\0") in text for text in body["input"]):
            return self.whole(http, 400, {"error": "the input length exceeds the context length"})
        if path == "/api/version":
            return self.whole(http, 200, {"version": "0.6.5"})
        if path == "/api/tags":
            return self.whole(http, 200, {"models": [{"name": "llama3:latest"}]})
        if path == "/api/embed":
            return self.whole(http, 200, {"embeddings": [embedded(text)[: self.dimensions] for text in body["input"]]})
        if path == "/v1/models":
            return self.whole(http, 200, {"data": [{"id": "llama3"}]})
        if path == "/v1/embeddings":
            data = [{"index": at, "embedding": embedded(text)} for at, text in enumerate(body["input"])]
            return self.whole(http, 200, {"data": data[::-1]})
        if path == "/api/generate":
            return self.whole(http, 200, {"response": f"You said: {body['prompt']}", "done": True})
        if path in ("/api/chat", "/v1/chat/completions"):
            return self.chat(http, body, path == "/api/chat")
        return self.whole(http, 404, {"error": f"no {path} here"})

    def whole(self, http: BaseHTTPRequestHandler, status: int, body: Any) -> None:
        text = json.dumps(body).encode()
        http.send_response(status)
        http.send_header("Content-Type", "application/json")
        http.send_header("Content-Length", str(len(text)))
        http.end_headers()
        http.wfile.write(text)

    def chat(self, http: BaseHTTPRequestHandler, body: Any, ollama: bool) -> None:
        words = re.split(r"(?<= )", "You said: " + body["messages"][-1]["content"])
        if not body.get("stream", True):
            return self.whole(http, 200, {"message": {"role": "assistant", "content": "".join(words)}, "done": True})
        http.send_response(200)
        http.send_header("Content-Type", "application/x-ndjson" if ollama else "text/event-stream")
        http.send_header("Connection", "close")
        http.end_headers()
        for at, word in enumerate(words):
            if at == self.break_after:
                http.close_connection = True
                return None
            if at == 1 and self.malformed is not None:
                line = self.malformed if ollama else f"data: {self.malformed}\n"
            elif ollama:
                line = json.dumps({"message": {"role": "assistant", "content": word}, "done": False})
            else:
                line = "data: " + json.dumps({"choices": [{"index": 0, "delta": {"content": word}}]}) + "\n"
            http.wfile.write(line.encode() + b"\n")
        if ollama:
            http.wfile.write(json.dumps({"done": True, "done_reason": self.finish}).encode() + b"\n")
        else:
            last = {"choices": [{"index": 0, "delta": {}, "finish_reason": self.finish}]}
            http.wfile.write(f"data: {json.dumps(last)}\n\ndata: [DONE]\n\n".encode())
        http.close_connection = True
        return None


@pytest.fixture
def models() -> Iterator[ModelServer]:
    server = ModelServer()
    yield server
    server.close()


@pytest.fixture
def vault(tmp_path: Path) -> Path:
    """A vault of three pages."""
    root = tmp_path / "vault"
    pages = {
        "index.md": "---\ntitle: Start\nweight: 3\ntags: [a, b]\n---\n# Obelisk\n\nA vault of notes.\n",
        "animals/cats.md": "# Cats\n\nThe caracal is a medium-sized wildcat with tufted ears.\n",
        "animals/birds.markdown": "# Birds\n\nThe hoopoe wears a crown of feathers.\n",
        ".obsidian/workspace.md": "hidden\n",
        "notes.txt": "not a page\n",
    }
    for name, text in pages.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


@pytest.fixture
def settings(vault: Path, models: ModelServer) -> Settings:
    return Settings(vector_db="memory", vault_dir=vault, ollama_url=models.url, watch_interval=0.05)
