"""LiteLLM's keys and models without LiteLLM's database engine, in front of the real proxy.

The real proxy keeps keys and models in PostgreSQL through Prisma, whose engine no package registry has. This double keeps
them in the same PostgreSQL by itself: it takes what LiteLLM's own request models take (and, unlike them, refuses what they
would silently drop), knows who may use which model, and forwards `/v1` to the real proxy under the name that the model
was registered with.
"""

import asyncio
import hashlib
import hmac
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import psycopg
import uvicorn
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from litellm.proxy._types import GenerateKeyRequest, KeyRequest, ModelInfoDelete, UpdateKeyRequest
from litellm.types.router import Deployment
from psycopg.types.json import Jsonb
from pydantic import BaseModel, ValidationError
from starlette.background import BackgroundTask

MASTER = os.environ["LITELLM_MASTER_KEY"]
PROXY = os.environ.get("LITELLM_PROXY_URL", "http://litellm-proxy:4000")
TABLE = "CREATE TABLE IF NOT EXISTS double (kind text, id text, body jsonb NOT NULL, PRIMARY KEY (kind, id))"

app = FastAPI(title="LiteLLM's double")
client = httpx.AsyncClient(timeout=httpx.Timeout(10, read=300))


def connect() -> psycopg.Connection[Any]:
    host, _, port = os.environ.get("DATABASE_HOST", "postgres:5432").partition(":")
    connection = psycopg.connect(
        host=host,
        port=port or "5432",
        dbname=os.environ.get("DATABASE_NAME", "litellm"),
        user=os.environ.get("DATABASE_USERNAME", "litellm"),
        password=os.environ["DATABASE_PASSWORD"],
        autocommit=True,
        connect_timeout=3,
    )
    connection.execute(TABLE)
    return connection


def database(sql: str, *values: Any) -> list[Any]:
    try:
        with connect() as connection:
            cursor = connection.execute(sql, values)
            return cursor.fetchall() if cursor.description else [cursor.rowcount]
    except psycopg.errors.UniqueViolation:
        raise HTTPException(400, "it exists already") from None
    except psycopg.OperationalError as error:
        raise HTTPException(503, f"the database cannot be reached: {error}") from None


def rows(kind: str) -> dict[str, Any]:
    return dict(database("SELECT id, body FROM double WHERE kind = %s ORDER BY id", kind))


def hashed(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def bearer(request: Request) -> str:
    return request.headers.get("authorization", "").removeprefix("Bearer ").strip()


def is_master(key: str) -> bool:
    return hmac.compare_digest(key.encode(), MASTER.encode())


def admin(request: Request) -> None:
    if not is_master(bearer(request)):
        raise HTTPException(401, "only the master key may do this")


def permitted(request: Request) -> list[str] | None:
    """The models that the caller may use; `None`: all."""
    key = bearer(request)
    if is_master(key):
        return None
    known = rows("key").get(hashed(key))
    if not key or known is None:
        raise HTTPException(401, "no such key")
    return known["models"] or None


async def body_of(request: Request, shape: type[BaseModel]) -> dict[str, Any]:
    """The body, as LiteLLM's own model of the request accepts it; a field that LiteLLM would drop is refused."""
    try:
        body = json.loads(await request.body())
        shape(**body)
    except (ValueError, TypeError, ValidationError) as error:
        raise HTTPException(422, str(error)) from None
    if unknown := sorted(set(body) - set(shape.model_fields)):
        raise HTTPException(422, f"LiteLLM drops {', '.join(unknown)}")
    return body


@app.exception_handler(HTTPException)
def failed(_: Request, error: HTTPException) -> JSONResponse:
    return JSONResponse({"error": {"message": str(error.detail), "code": str(error.status_code)}}, error.status_code)


@app.get("/health/liveliness")
@app.get("/health/liveness")
def alive() -> str:
    return "I'm alive!"


@app.get("/health/readiness")
def ready() -> Response:
    try:
        database("SELECT 1")
    except HTTPException:
        return JSONResponse({"status": "unhealthy", "db": "Not connected"}, 503)
    return JSONResponse({"status": "healthy", "db": "connected"})


def shown(model: dict[str, Any]) -> dict[str, Any]:
    parameters = {name: value for name, value in model["litellm_params"].items() if name != "api_key"}
    return {**model, "litellm_params": parameters}


@app.get("/model/info", dependencies=[Depends(admin)])
def model_info() -> dict[str, Any]:
    return {"data": [shown(model) for model in rows("model").values()]}


@app.post("/model/new", dependencies=[Depends(admin)])
async def model_new(request: Request) -> dict[str, Any]:
    body = await body_of(request, Deployment)
    id = (body.get("model_info") or {}).get("id") or hashed(json.dumps(body, sort_keys=True))
    body["model_info"] = {**(body.get("model_info") or {}), "id": id}
    await asyncio.to_thread(database, "INSERT INTO double VALUES ('model', %s, %s)", id, Jsonb(body))
    return {"model_id": id, **shown(body)}


@app.post("/model/delete", dependencies=[Depends(admin)])
async def model_delete(request: Request) -> dict[str, Any]:
    body = await body_of(request, ModelInfoDelete)
    gone = await asyncio.to_thread(database, "DELETE FROM double WHERE kind = 'model' AND id = %s", body["id"])
    if gone == [0]:
        raise HTTPException(400, f"there is no model {body['id']}")
    return {"message": f"model {body['id']} deleted"}


@app.get("/key/info")
def key_info(request: Request) -> dict[str, Any]:
    key = bearer(request)
    asked = request.query_params.get("key") if is_master(key) else key
    known = rows("key").get(hashed(asked or ""))
    if known is None:
        raise HTTPException(404 if is_master(key) else 401, "no such key")
    return {"key": hashed(asked or ""), "info": known}


@app.post("/key/generate", dependencies=[Depends(admin)])
async def key_generate(request: Request) -> dict[str, Any]:
    body = await body_of(request, GenerateKeyRequest)
    key = body.pop("key", None) or f"sk-{os.urandom(16).hex()}"
    keys = await asyncio.to_thread(rows, "key")
    alias = body.get("key_alias")
    if alias and any(it.get("key_alias") == alias for it in keys.values()):
        raise HTTPException(400, f"a key with the alias {alias} exists already")
    known = {"key_alias": alias, "models": [], "tpm_limit": None, "rpm_limit": None, "metadata": {}, **body}
    await asyncio.to_thread(database, "INSERT INTO double VALUES ('key', %s, %s)", hashed(key), Jsonb(known))
    return {"key": key, **known}


@app.post("/key/update", dependencies=[Depends(admin)])
async def key_update(request: Request) -> dict[str, Any]:
    body = await body_of(request, UpdateKeyRequest)
    key = hashed(body.pop("key"))
    change = "UPDATE double SET body = body || %s WHERE kind = 'key' AND id = %s"
    if await asyncio.to_thread(database, change, Jsonb(body), key) == [0]:
        raise HTTPException(404, "no such key")
    return {"key": key, **body}


@app.post("/key/delete", dependencies=[Depends(admin)])
async def key_delete(request: Request) -> dict[str, Any]:
    body = await body_of(request, KeyRequest)
    ids = [hashed(key) for key in body.get("keys") or []]
    await asyncio.to_thread(database, "DELETE FROM double WHERE kind = 'key' AND id = ANY(%s)", ids)
    return {"deleted_keys": ids}


@app.get("/models")
@app.get("/v1/models")
def models(request: Request) -> dict[str, Any]:
    allowed = permitted(request)
    names = sorted({model["model_name"] for model in rows("model").values()})
    names = [name for name in names if allowed is None or name in allowed]
    return {"object": "list", "data": [{"id": name, "object": "model", "owned_by": "openai"} for name in names]}


@app.post("/chat/completions")
@app.post("/v1/chat/completions")
@app.post("/embeddings")
@app.post("/v1/embeddings")
async def forward(request: Request) -> Response:
    allowed = await asyncio.to_thread(permitted, request)
    try:
        body = json.loads(await request.body())
        name = str(body["model"])
    except (ValueError, KeyError, TypeError):
        raise HTTPException(400, "the body names no model") from None
    if allowed is not None and name not in allowed:
        raise HTTPException(401, f"this key may not use {name}")
    found = await asyncio.to_thread(rows, "model")
    target = next((model["litellm_params"] for model in found.values() if model["model_name"] == name), None)
    if target is None:
        raise HTTPException(400, f"there is no model {name}")
    provider, _, inner = target["model"].partition("/")
    if provider == "openai":
        base, key, body["model"] = target["api_base"], target.get("api_key", ""), inner
    else:
        base, key, body["model"] = f"{PROXY}/v1", MASTER, target["model"]
    path = request.url.path.removeprefix("/v1")
    sent = client.build_request("POST", f"{base}{path}", json=body, headers={"Authorization": f"Bearer {key}"})
    try:
        answer = await client.send(sent, stream=True)
    except httpx.HTTPError as error:
        raise HTTPException(503, f"{base} cannot be reached: {error or type(error).__name__}") from None
    kind = answer.headers.get("content-type", "application/json")
    return StreamingResponse(pieces(answer), answer.status_code, media_type=kind, background=BackgroundTask(answer.aclose))


async def pieces(answer: httpx.Response) -> AsyncIterator[bytes]:
    async for piece in answer.aiter_bytes():
        yield piece


if __name__ == "__main__":
    if not Path("/run/secrets").is_dir() and "--anywhere" not in sys.argv:
        sys.exit("this is the test stack's: it wants its secrets below /run/secrets")
    uvicorn.run(app, host="0.0.0.0", port=int(os.environ.get("API_PORT", "4000")), access_log=False)
