"""Ollama's API with the vault behind it: for clients that speak nothing else.

`chat` and `generate` are given what the vault says; everything else passes unchanged. Where retrieval fails the request
passes unchanged too: an answer without the vault is worth more than none. What changes Ollama itself (pull, delete, ...)
passes only where a token guards this service.
"""

import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import httpx
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import StreamingResponse

from obelisk.rag.models import ModelError
from obelisk.rag.service import Rag
from obelisk.rag.store import StoreError

log = logging.getLogger(__name__)

#: What anyone may ask.
HARMLESS = frozenset({"chat", "embed", "embeddings", "generate", "ps", "show", "tags", "version"})

#: Headers that belong to one connection (RFC 9110, 7.6.1), or that are wrong once the body changed.
DROPPED = frozenset(
    {
        "authorization",
        "connection",
        "content-length",
        "host",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)


def add_routes(app: FastAPI, rag: Rag) -> None:
    """Adds the routes."""

    @app.api_route("/api/{path:path}", methods=["GET", "HEAD", "POST", "DELETE"], include_in_schema=False)
    @app.api_route("/ollama/api/{path:path}", methods=["GET", "HEAD", "POST", "DELETE"], include_in_schema=False)
    async def ollama(path: str, request: Request) -> Response:
        if path not in HARMLESS and not rag.settings.api_token:
            raise HTTPException(403, f"`/api/{path}` changes Ollama: set API_TOKEN_FILE to allow it to those who know it")
        body = await request.body()
        if request.method == "POST" and path in ("chat", "generate"):
            body = await _with_vault(rag, path, body)
        url = f"{rag.settings.ollama_url}/api/{path}"
        headers = [(name, value) for name, value in request.headers.items() if name.lower() not in DROPPED]
        outgoing = rag.client.build_request(
            request.method, url, content=body, headers=headers, params=request.query_params
        )
        try:
            answer = await rag.client.send(outgoing, stream=True)
        except httpx.HTTPError as error:
            raise ModelError(f"{url}: {str(error) or type(error).__name__}") from error
        kept = {name: value for name, value in answer.headers.items() if name.lower() not in DROPPED}
        return StreamingResponse(_passed(answer), status_code=answer.status_code, headers=kept)


async def _passed(answer: httpx.Response) -> AsyncIterator[bytes]:
    try:
        async for piece in answer.aiter_raw():
            yield piece
    finally:
        await answer.aclose()


async def _with_vault(rag: Rag, path: str, body: bytes) -> bytes:
    try:
        asked = json.loads(body)
        question = _question(path, asked)
    except (ValueError, TypeError, AttributeError, KeyError):
        return body  # Ollama says what is wrong with it
    if not question:
        return body
    try:
        found = await rag.find(question)
    except (StoreError, ModelError) as error:
        rag.counters.failed("proxy")
        log.warning("passed on without the vault: %s", error)
        return body
    if not found.hits:
        return body
    rag.counters.questions += 1
    told = rag.instruct(question, found)
    if path == "generate":
        asked["prompt"] = told
    else:
        asked["messages"][_last_user(asked["messages"])]["content"] = told
    return json.dumps(asked).encode()


def _question(path: str, asked: dict[str, Any]) -> str:
    if path == "generate":
        text = asked["prompt"]
    else:
        text = asked["messages"][_last_user(asked["messages"])]["content"]
    if not isinstance(text, str):
        raise TypeError
    return text.strip()


def _last_user(messages: list[dict[str, Any]]) -> int:
    return max((at for at, message in enumerate(messages) if message.get("role") == "user"))
