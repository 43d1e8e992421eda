"""A stand-in for Ollama: its HTTP API over a real embedding model and a deterministic answer.

`all-minilm` embeds. `tiny` answers with the sentence of the conversation that is nearest to the question, by these same
vectors: an answer that depends on what was retrieved, word for word. Both must be pulled before they are used, like
Ollama's own; which were pulled is kept in OLLAMA_MODELS, so it survives a restart.
"""

import json
import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from embed import Model

VERSION = "0.6.5"
KNOWN = {"all-minilm": ("bert", ["embedding"]), "tiny": ("extract", ["completion"])}


class Refused(Exception):
    """A request that is answered with a status and an error."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Models:
    """The models: which there are, which were pulled, and what they say."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = Lock()
        self._model = Model()

    def pulled(self) -> list[str]:
        return sorted(path.name for path in self._folder.glob("*") if path.name in KNOWN)

    def named(self, body: dict[str, Any]) -> str:
        """The model that a request names, without its tag."""
        name = body.get("model") or body.get("name")
        if not isinstance(name, str) or not name:
            raise Refused(400, "model is required")
        return name.removesuffix(":latest")

    def ready(self, body: dict[str, Any], ability: str) -> str:
        name = self.named(body)
        if name not in self.pulled():
            raise Refused(404, f"model '{name}' not found")
        if ability not in KNOWN[name][1]:
            raise Refused(400, f"model '{name}' does not support {ability}")
        return name

    def pull(self, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        name = self.named(body)
        yield {"status": "pulling manifest"}
        if name not in KNOWN:
            yield {"error": "pull model manifest: file does not exist"}
            return
        with self._lock:
            (self._folder / name).touch()
        yield {"status": f"pulling {name}", "total": 1, "completed": 1}
        yield {"status": "success"}

    def embed(self, texts: list[str]) -> tuple[list[list[float]], int]:
        with self._lock:
            return self._model.embed(texts), sum(self._model.tokens(text) for text in texts)

    def answer(self, messages: list[dict[str, Any]]) -> str:
        """The sentence that is nearest to the last question."""
        texts = [text(message) for message in messages]
        question = next((it for it, message in zip(texts[::-1], messages[::-1]) if message.get("role") == "user"), "")
        asked = [it for it in sentences(question) if it.endswith("?")]
        asked = asked[-1] if asked else question
        # Headings are no answers.
        known = [it for one in texts for it in sentences(one) if it != asked and it.endswith((".", "!")) and " " in it]
        if not known:
            return "I do not know."
        vectors = np.array(self.embed([asked, *known])[0])
        return known[int(np.argmax(vectors[1:] @ vectors[0]))]


def text(message: dict[str, Any]) -> str:
    content = message.get("content") or ""
    if isinstance(content, list):
        content = "\n".join(it.get("text", "") for it in content if isinstance(it, dict))
    return str(content)


def sentences(whole: str) -> list[str]:
    found = re.split(r"(?<=[.!?])\s+|\n+", whole)
    return [it.strip().lstrip("#- ") for it in found if it.strip()]


class Handler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    models: Models

    def do_HEAD(self) -> None:
        self._begin(200, "text/plain", "0")

    def do_GET(self) -> None:
        tags = [
            {"name": f"{name}:latest", "model": f"{name}:latest", "size": 1, "digest": name, "details": {"family": KNOWN[name][0]}}
            for name in self.models.pulled()
        ]
        match self.path.split("?")[0]:
            case "/":
                self._send(200, b"Ollama is running", "text/plain")
            case "/api/version":
                self._json(200, {"version": VERSION})
            case "/api/tags":
                self._json(200, {"models": tags})
            case "/api/ps":
                self._json(200, {"models": []})
            case other:
                self._json(404, {"error": f"{other} not found"})

    def do_POST(self) -> None:
        try:
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length) or b"{}")
            if not isinstance(body, dict):
                raise Refused(400, "the body is not an object")
            self._answer(self.path.split("?")[0], body)
        except Refused as error:
            self._json(error.status, {"error": str(error)})
        except ValueError as error:
            self._json(400, {"error": f"invalid body: {error}"})

    def _answer(self, path: str, body: dict[str, Any]) -> None:
        models = self.models
        started = time.monotonic_ns()
        match path:
            case "/api/pull":
                parts = list(models.pull(body))
                if body.get("stream") is False:
                    last = parts[-1]
                    self._json(500 if "error" in last else 200, last)
                else:
                    self._lines(parts)
            case "/api/show":
                name = models.named(body)
                if name not in models.pulled():
                    raise Refused(404, f"model '{name}' not found")
                family, abilities = KNOWN[name]
                self._json(200, {"details": {"family": family}, "model_info": {}, "capabilities": abilities, "template": ""})
            case "/api/embed":
                name = models.ready(body, "embedding")
                given = body.get("input", "")
                texts = given if isinstance(given, list) else [given]
                vectors, count = models.embed([str(it) for it in texts])
                taken = time.monotonic_ns() - started
                self._json(200, {"model": name, "embeddings": vectors, "total_duration": taken, "load_duration": 0, "prompt_eval_count": count})
            case "/api/embeddings":
                models.ready(body, "embedding")
                self._json(200, {"embedding": models.embed([str(body.get("prompt", ""))])[0][0]})
            case "/api/chat":
                name = models.ready(body, "completion")
                said = models.answer(body.get("messages") or [])
                self._say(name, said, body, lambda piece: {"message": {"role": "assistant", "content": piece}}, started)
            case "/api/generate":
                name = models.ready(body, "completion")
                said = models.answer([{"role": "user", "content": body.get("prompt") or ""}])
                self._say(name, said, body, lambda piece: {"response": piece}, started)
            case other:
                self._json(404, {"error": f"{other} not found"})

    def _say(self, name: str, said: str, body: dict[str, Any], shape: Any, started: int) -> None:
        made = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        common = {"model": name, "created_at": made}
        ended = {
            "done": True, "done_reason": "stop", "total_duration": time.monotonic_ns() - started, "load_duration": 0,
            "prompt_eval_count": 1, "prompt_eval_duration": 1, "eval_count": len(said.split()), "eval_duration": 1,
        }  # fmt: skip
        if body.get("stream") is False:
            self._json(200, {**common, **shape(said), **ended})
            return
        words = re.findall(r"\S+\s*", said)
        parts = [{**common, **shape(word), "done": False} for word in words]
        self._lines([*parts, {**common, **shape(""), **ended}])

    def _begin(self, status: int, kind: str, length: str | None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Transfer-Encoding" if length is None else "Content-Length", length or "chunked")
        self.end_headers()

    def _send(self, status: int, body: bytes, kind: str) -> None:
        self._begin(status, kind, str(len(body)))
        self.wfile.write(body)

    def _json(self, status: int, value: Any) -> None:
        self._send(status, json.dumps(value).encode(), "application/json")

    def _lines(self, values: list[dict[str, Any]]) -> None:
        self._begin(200, "application/x-ndjson", None)
        for value in values:
            line = json.dumps(value).encode() + b"\n"
            self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
        self.wfile.write(b"0\r\n\r\n")

    def log_message(self, format: str, *arguments: Any) -> None:
        if self.path != "/api/version":
            sys.stderr.write(f"{self.address_string()} {format % arguments}\n")


def main() -> None:
    host, port = os.environ.get("OLLAMA_HOST", "0.0.0.0:11434").rsplit(":", 1)
    folder = Path(os.environ.get("OLLAMA_MODELS", "/models"))
    folder.mkdir(parents=True, exist_ok=True)
    Handler.models = Models(folder)
    server = ThreadingHTTPServer((host, int(port)), Handler)
    server.daemon_threads = True
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    print(f"listening on {host}:{port}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
