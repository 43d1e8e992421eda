"""The service over HTTP: OpenAI's API with the vault behind it, Ollama's API likewise, and what operators ask.

| route | what |
| --- | --- |
| `POST /v1/chat/completions` | an answer from the vault, whole or streamed, with its sources |
| `POST /v1/embeddings`, `GET /v1/models` | what clients of OpenAI's API expect beside it |
| `POST /v1/search` | the chunks alone |
| `/api/*`, `/ollama/api/*` | Ollama, with the vault added to `chat` and `generate` |
| `GET /healthz` | the process answers |
| `GET /readyz` | vault, store and models can be reached and the vault is indexed; else 503 with the reasons |
| `GET /stats`, `GET /metrics` | the index as JSON, counters for Prometheus |

With a token every route but the three that orchestrators and Prometheus ask wants `Authorization: Bearer`.
"""

import asyncio
import base64
import contextlib
import hmac
import json
import logging
import struct
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any, Literal

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field, model_validator

import obelisk
from obelisk.rag import proxy
from obelisk.rag.metrics import Metrics
from obelisk.rag.models import Ask, Finish, ModelError
from obelisk.rag.service import Found, Rag
from obelisk.rag.store import StoreError

log = logging.getLogger(__name__)

#: The model that clients name to be answered from the vault; `obelisk-rag/NAME` has NAME write the answer.
MODEL = "obelisk-rag"

OPEN = frozenset({"/healthz", "/readyz", "/metrics"})


class Message(BaseModel):
    """A message of a conversation; content may be text or a list of parts."""

    model_config = ConfigDict(extra="allow")

    role: str
    content: str | list[dict[str, Any]] | None = None

    def text(self) -> str:
        """The words of the message."""
        if isinstance(self.content, list):
            return "\n".join(str(part.get("text", "")) for part in self.content if part.get("type") == "text")
        return self.content or ""

    @model_validator(mode="after")
    def _is_text(self) -> "Message":
        # Half a surrogate pair, which JSON can say, is no character; of parts nobody else has looked at the text.
        if any(0xD800 <= ord(letter) <= 0xDFFF for letter in self.text()):
            raise ValueError("the text holds half a surrogate pair")
        return self


class StreamOptions(BaseModel):
    """What a stream tells besides the answer."""

    include_usage: bool = False


class ChatRequest(BaseModel):
    """OpenAI's chat completion request; fields that mean nothing here are accepted."""

    model_config = ConfigDict(extra="allow")

    model: str = MODEL
    messages: list[Message]
    temperature: float | None = Field(default=0.7, ge=0, le=2, allow_inf_nan=False)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    stream: bool | None = False
    stream_options: StreamOptions | None = None


class EmbeddingRequest(BaseModel):
    """OpenAI's embedding request."""

    model_config = ConfigDict(extra="allow")

    model: str = ""
    input: str | list[str]
    encoding_format: Literal["float", "base64"] | None = "float"


class SearchRequest(BaseModel):
    """A question without an answer."""

    query: str = Field(min_length=1)
    top_k: int | None = Field(default=None, ge=1, le=100)


def create_app(rag: Rag) -> FastAPI:
    """The application. It follows the vault from its start to its end."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        indexing = asyncio.create_task(rag.keep_in_sync())
        # A defect must not end silently in a service that answers from an index nobody keeps.
        indexing.add_done_callback(_report)
        yield
        indexing.cancel()
        await asyncio.gather(indexing, return_exceptions=True)
        await rag.close()

    app = FastAPI(title="Obelisk RAG", version=obelisk.__version__, lifespan=lifespan)
    metrics = Metrics(rag)
    app.add_middleware(Guard, token=str(rag.settings.api_token), metrics=metrics)

    @app.exception_handler(StoreError)
    async def store_failed(_: Request, error: StoreError) -> JSONResponse:
        return _failed(503, "store", error)

    @app.exception_handler(ModelError)
    async def model_failed(_: Request, error: ModelError) -> JSONResponse:
        return _failed(502, "model", error)

    @app.exception_handler(RequestValidationError)
    async def misfit(_: Request, error: RequestValidationError) -> Response:
        # What was sent is not repeated: it may hold what JSON or UTF-8 cannot say.
        detail = [{key: it[key] for key in ("type", "loc", "msg")} for it in error.errors()]
        return Response(json.dumps({"detail": detail}), status_code=422, media_type="application/json")

    def _failed(status: int, part: str, error: Exception) -> JSONResponse:
        rag.counters.failed(part)
        log.warning("%s", error)
        return JSONResponse({"detail": str(error)}, status_code=status)

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "ok", "version": obelisk.__version__}

    @app.get("/readyz")
    async def readyz() -> JSONResponse:
        problems = await rag.problems()
        body = {"status": "not ready" if problems else "ready", "problems": problems}
        return JSONResponse(body, status_code=503 if problems else 200)

    @app.get("/stats")
    async def stats() -> dict[str, object]:
        return rag.stats()

    @app.get("/metrics")
    async def metrics_text() -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/v1/models")
    async def list_models() -> dict[str, object]:
        settings = rag.settings
        names = [MODEL, f"{MODEL}/{settings.completion_name()}", settings.embedding_name()]
        return {
            "object": "list",
            "data": [{"id": name, "object": "model", "created": 0, "owned_by": "obelisk"} for name in names],
        }

    @app.post("/v1/search")
    async def search(request: SearchRequest) -> dict[str, object]:
        found = await rag.find(request.query, request.top_k)
        return {
            "query": request.query,
            "hits": [
                {
                    "id": hit.chunk.id,
                    "source": hit.chunk.source,
                    "score": hit.score,
                    "text": hit.chunk.text,
                    "metadata": hit.chunk.metadata,
                }
                for hit in found.hits
            ],
        }

    @app.post("/v1/embeddings")
    async def embeddings(request: EmbeddingRequest) -> dict[str, object]:
        texts = [request.input] if isinstance(request.input, str) else request.input
        if not texts or not all(texts):
            raise HTTPException(400, "`input` must hold at least one text, and none may be empty")
        vectors = await rag.embedder.embed(texts)
        words = sum(len(text.split()) for text in texts)
        return {
            "object": "list",
            "model": rag.settings.embedding_name(),
            "data": [
                {"object": "embedding", "index": at, "embedding": _encoded(vector, request.encoding_format)}
                for at, vector in enumerate(vectors)
            ],
            "usage": {"prompt_tokens": words, "total_tokens": words},
        }

    @app.post("/v1/chat/completions")
    async def chat(request: ChatRequest) -> Response:
        question = _question(request)
        found = await rag.find(question)
        ask = _ask(request)
        pieces = rag.answer(question, found, ask)
        reply = Reply(request, found, ask.finish)
        if request.stream:
            # The first piece is awaited, so that a model that refuses is a status and not a broken stream.
            first = await anext(pieces, None)
            return StreamingResponse(reply.stream(first, pieces), media_type="text/event-stream")
        return JSONResponse(reply.whole("".join([piece async for piece in pieces])))

    proxy.add_routes(app, rag)
    return app


def _report(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("the index is no longer kept", exc_info=error)


def _encoded(vector: list[float], how: str | None) -> list[float] | str:
    if how != "base64":
        return vector
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode("ascii")


def _question(request: ChatRequest) -> str:
    for message in reversed(request.messages):
        if message.role == "user" and (text := message.text().strip()):
            return text
    raise HTTPException(400, "No user messages found in the request")


def _ask(request: ChatRequest) -> Ask:
    """The conversation up to the question, which comes last."""
    last = max(at for at, message in enumerate(request.messages) if message.role == "user" and message.text().strip())
    messages = [{"role": message.role, "content": message.text()} for message in request.messages[: last + 1]]
    name = "" if request.model == MODEL else request.model.removeprefix(f"{MODEL}/")
    return Ask(messages, request.temperature, request.max_completion_tokens or request.max_tokens, name or None)


class Reply:
    """An answer in OpenAI's shape. Tokens are counted as words: no tokenizer is at hand that fits every model."""

    def __init__(self, request: ChatRequest, found: Found, finish: Finish) -> None:
        self._id = f"rag-chatcmpl-{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._request, self._finish = request, finish
        self._sources = found.sources() or None
        self._asked = sum(len(message.text().split()) for message in request.messages)

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._request.model}

    def _usage(self, words: int) -> dict[str, int]:
        return {"prompt_tokens": self._asked, "completion_tokens": words, "total_tokens": self._asked + words}

    def whole(self, text: str) -> dict[str, Any]:
        """The answer at once."""
        message = {"role": "assistant", "content": text}
        return {
            **self._head("chat.completion"),
            "choices": [{"index": 0, "message": message, "finish_reason": self._finish.reason}],
            "usage": self._usage(len(text.split())),
            "sources": self._sources,
        }

    async def stream(self, first: str | None, rest: AsyncIterator[str]) -> AsyncIterator[str]:
        """The answer as server-sent events; the last one names the sources."""

        def event(delta: dict[str, str], finish: str | None = None, **more: Any) -> str:
            choices = [{"index": 0, "delta": delta, "finish_reason": finish}]
            return _event({**self._head("chat.completion.chunk"), "choices": choices, **more})

        text = first or ""
        yield event({"role": "assistant", "content": text})
        try:
            async for piece in rest:
                text += piece
                yield event({"content": piece})
        except ModelError as error:
            log.warning("an answer broke off: %s", error)
            yield _event({"error": {"message": str(error), "type": "model_error"}})
            yield "data: [DONE]\n\n"
            return
        yield event({}, self._finish.reason, sources=self._sources)
        if self._request.stream_options and self._request.stream_options.include_usage:
            head = self._head("chat.completion.chunk")
            yield _event({**head, "choices": [], "usage": self._usage(len(text.split()))})
        yield "data: [DONE]\n\n"


def _event(body: dict[str, Any]) -> str:
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"


class Guard:
    """Asks for the token and counts requests. Plain ASGI: streams pass through it piece by piece."""

    def __init__(self, app: Any, token: str, metrics: Metrics) -> None:
        self._app, self._token, self._metrics = app, token.encode(), metrics

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.monotonic(), 500

        async def counted(message: dict[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            if self._allowed(scope):
                await self._app(scope, receive, counted)
            else:
                refusal = JSONResponse(
                    {"detail": "this service needs `Authorization: Bearer TOKEN`"},
                    status_code=401,
                    headers={"WWW-Authenticate": "Bearer"},
                )
                await refusal(scope, receive, counted)
        finally:
            route = scope.get("route")
            path = getattr(route, "path", None) or "other"
            self._metrics.request(scope["method"], path, status, time.monotonic() - started)

    def _allowed(self, scope: dict[str, Any]) -> bool:
        if not self._token or scope["path"] in OPEN:
            return True
        given = dict(scope["headers"]).get(b"authorization", b"")
        kind, _, token = given.partition(b" ")
        return kind.lower() == b"bearer" and hmac.compare_digest(token.strip(), self._token)
