"""Models: who embeds and who writes, reached through Ollama's own API or an OpenAI-compatible one.

An answer arrives as pieces of text. A model that is loaded from disk may think for minutes before the first one, so only
silence is limited, never the whole answer.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import httpx

from obelisk.rag.config import Settings

#: Texts that are embedded in one request.
BATCH = 16

#: How often a request is tried that a busy or starting model refuses, and the first pause in seconds.
TRIES = 3
PAUSE = 0.5


class ModelError(Exception):
    """A model did not do what it was asked; the message says which, where and why, without secrets."""


class Refused(ModelError):
    """A model does not take what it was given and never will: the same request need not be sent again."""


@dataclass
class Finish:
    """Why an answer ended, as OpenAI's API calls it; known when it has."""

    reason: str = "stop"


@dataclass(frozen=True)
class Ask:
    """What a model is asked to write."""

    messages: list[dict[str, Any]]
    temperature: float | None = None
    max_tokens: int | None = None
    model: str | None = None
    finish: Finish = field(default_factory=Finish)


class Models(Protocol):
    """A provider."""

    async def embed(self, texts: list[str]) -> list[list[float]]:
        """One vector a text, in order."""

    def write(self, ask: Ask) -> AsyncIterator[str]:
        """Pieces of the answer as they come."""

    async def check(self) -> None:
        """Raises if the provider cannot be reached. Costs nothing: no model is run."""


def embedder(settings: Settings, client: httpx.AsyncClient) -> Models:
    """Who embeds."""
    return _provider(settings.embedding_provider, settings, client)


def writer(settings: Settings, client: httpx.AsyncClient) -> Models:
    """Who writes answers."""
    return _provider(settings.completion_provider, settings, client)


def _provider(name: str, settings: Settings, client: httpx.AsyncClient) -> Models:
    if name == "ollama":
        return Ollama(settings.ollama_url, settings.embedding_model, settings.ollama_model, client)
    if name == "litellm":
        base = f"{settings.litellm_api_url}/v1"
        return OpenAI(base, settings.litellm_api_key, settings.embedding_model, settings.ollama_model, client)
    return OpenAI(
        settings.openai_api_base,
        settings.openai_api_key,
        settings.openai_embedding_model,
        settings.openai_completion_model,
        client,
    )


class Ollama:
    """Ollama's own API."""

    def __init__(self, url: str, embedding: str, completion: str, client: httpx.AsyncClient) -> None:
        self._url, self._embedding, self._completion, self._client = url, embedding, completion, client

    async def embed(self, texts: list[str]) -> list[list[float]]:
        vectors: list[list[float]] = []
        for start in range(0, len(texts), BATCH):
            batch = texts[start : start + BATCH]
            body = {"model": self._embedding, "input": batch}
            answer = await _post(self._client, f"{self._url}/api/embed", body, {})
            vectors.extend(_vectors(answer.get("embeddings"), len(batch), self._url))
        return vectors

    async def write(self, ask: Ask) -> AsyncIterator[str]:
        options: dict[str, Any] = {}
        if ask.temperature is not None:
            options["temperature"] = ask.temperature
        if ask.max_tokens is not None:
            options["num_predict"] = ask.max_tokens
        body = {
            "model": ask.model or self._completion,
            "messages": ask.messages,
            "stream": True,
            "options": options,
        }
        async for line in _lines(self._client, f"{self._url}/api/chat", body, {}):
            part = _parsed(line, self._url)
            if error := part.get("error"):
                raise ModelError(f"{self._url}: {error}")
            if piece := _content(part.get("message"), self._url):
                yield piece
            if part.get("done"):
                ask.finish.reason = "length" if part.get("done_reason") == "length" else "stop"
                return
        raise ModelError(f"{self._url} ended in the middle of its answer")

    async def check(self) -> None:
        await _get(self._client, f"{self._url}/api/version", {})


class OpenAI:
    """An OpenAI-compatible API, such as LiteLLM's."""

    def __init__(self, base: str, key: str, embedding: str, completion: str, client: httpx.AsyncClient) -> None:
        self._base, self._embedding, self._completion, self._client = base, embedding, completion, client
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}

    async def embed(self, texts: list[str]) -> list[list[float]]:
        vectors: list[list[float]] = []
        for start in range(0, len(texts), BATCH):
            batch = texts[start : start + BATCH]
            body = {"model": self._embedding, "input": batch, "encoding_format": "float"}
            answer = await _post(self._client, f"{self._base}/embeddings", body, self._headers)
            data = answer.get("data")
            if not isinstance(data, list) or not all(isinstance(it, dict) for it in data):
                raise ModelError(f"{self._base} answered without embeddings")
            # The order of the list is not promised, the index is.
            if not all(isinstance(it.get("index", 0), int) for it in data):
                raise ModelError(f"{self._base} answered with embeddings whose index is no number")
            data = sorted(data, key=lambda it: it.get("index", 0))
            vectors.extend(_vectors([it.get("embedding") for it in data], len(batch), self._base))
        return vectors

    async def write(self, ask: Ask) -> AsyncIterator[str]:
        body: dict[str, Any] = {
            "model": ask.model or self._completion,
            "messages": ask.messages,
            "stream": True,
        }
        if ask.temperature is not None:
            body["temperature"] = ask.temperature
        if ask.max_tokens is not None:
            body["max_tokens"] = ask.max_tokens
        async for line in _lines(self._client, f"{self._base}/chat/completions", body, self._headers):
            if not line.startswith("data:"):
                continue
            data = line[5:].strip()
            if data == "[DONE]":
                return
            part = _parsed(data, self._base)
            if error := part.get("error"):
                raise ModelError(f"{self._base}: {error.get('message', error) if isinstance(error, dict) else error}")
            choices = part.get("choices") or []
            if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
                raise ModelError(f"{self._base} answered with choices that are none")
            for choice in choices:
                if piece := _content(choice.get("delta"), self._base):
                    yield piece
                if isinstance(reason := choice.get("finish_reason"), str):
                    ask.finish.reason = reason
        raise ModelError(f"{self._base} ended in the middle of its answer")

    async def check(self) -> None:
        await _get(self._client, f"{self._base}/models", self._headers)


def _content(message: Any, place: str) -> str:
    """The text of a piece of an answer; a piece may have none."""
    if message is None:
        return ""
    content = message.get("content") if isinstance(message, dict) else 0
    if content is not None and not isinstance(content, str):
        raise ModelError(f"{place} answered with a piece that is not text")
    return content or ""


def _vectors(found: Any, wanted: int, place: str) -> list[list[float]]:
    if not isinstance(found, list) or len(found) != wanted or not all(isinstance(it, list) and it for it in found):
        raise ModelError(f"{place} did not answer with {wanted} vectors")
    if len({len(vector) for vector in found}) > 1:
        raise ModelError(f"{place} answered with vectors of different lengths")
    if not all(isinstance(number, (int, float)) for vector in found for number in vector):
        raise ModelError(f"{place} answered with vectors that are not numbers")
    return [[float(number) for number in vector] for vector in found]


def _parsed(text: str, place: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise ModelError(f"{place} answered with something that is not a JSON object: {text[:80]!r}")
    return value


def _reason(response: httpx.Response, text: str) -> str:
    """What a server said about its refusal, in one line."""
    try:
        said = json.loads(text)
        said = said.get("error", said) if isinstance(said, dict) else said
        said = said.get("message", said) if isinstance(said, dict) else said
    except ValueError:
        said = text
    return f"{response.status_code} {' '.join(str(said).split())[:200]}".strip()


def _again(response: httpx.Response) -> bool:
    return response.status_code in (429, 500, 502, 503, 504)


async def _post(client: httpx.AsyncClient, url: str, body: dict[str, Any], headers: dict[str, str]) -> dict[str, Any]:
    for attempt in range(TRIES):
        last = attempt == TRIES - 1
        try:
            response = await client.post(url, json=body, headers=headers)
        except httpx.HTTPError as error:
            if last:
                raise ModelError(f"{url}: {str(error) or type(error).__name__}") from error
        else:
            if response.is_success:
                return _parsed(response.text, url)
            if last or not _again(response):
                kind = Refused if response.status_code in (400, 413, 422) else ModelError
                raise kind(f"{url}: {_reason(response, response.text)}")
        await asyncio.sleep(PAUSE * 2**attempt)
    raise AssertionError("the last try returns or raises")


async def _get(client: httpx.AsyncClient, url: str, headers: dict[str, str]) -> None:
    try:
        response = await client.get(url, headers=headers, timeout=5)
    except httpx.HTTPError as error:
        raise ModelError(f"{url}: {str(error) or type(error).__name__}") from error
    if not response.is_success:
        raise ModelError(f"{url}: {_reason(response, response.text)}")


async def _lines(
    client: httpx.AsyncClient, url: str, body: dict[str, Any], headers: dict[str, str]
) -> AsyncIterator[str]:
    """The lines of a streamed answer. Tried again only while nothing of it was passed on."""
    for attempt in range(TRIES):
        last = attempt == TRIES - 1
        started = False
        try:
            async with client.stream("POST", url, json=body, headers=headers) as response:
                if response.is_success:
                    async for line in response.aiter_lines():
                        if line.strip():
                            started = True
                            yield line
                    return
                text = (await response.aread()).decode("utf-8", errors="replace")
                if last or not _again(response):
                    raise ModelError(f"{url}: {_reason(response, text)}")
        except httpx.HTTPError as error:
            if last or started:
                raise ModelError(f"{url}: {str(error) or type(error).__name__}") from error
        await asyncio.sleep(PAUSE * 2**attempt)
