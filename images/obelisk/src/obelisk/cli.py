"""The command line: `obelisk rag index | query | stats | serve | config`.

The result is on stdout, everything else on stderr. Exit status: 0 done, 1 it failed, 2 the request made no sense.
"""

import argparse
import asyncio
import json
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any

import obelisk
from obelisk.rag.config import OPTIONS, ConfigError, Settings, config_file, load


def parser() -> argparse.ArgumentParser:
    """What can be said."""
    top = argparse.ArgumentParser(prog="obelisk", description="A vault of Markdown notes as a knowledge base.")
    top.add_argument("--version", action="version", version=f"obelisk {obelisk.__version__}")
    rag = top.add_subparsers(dest="area", required=True).add_parser("rag", help="retrieval")
    commands = rag.add_subparsers(dest="command", required=True)

    index = commands.add_parser("index", help="make the store equal to the vault and end")
    index.add_argument("--vault", metavar="DIR", help="the folder of the pages, or one page (default: VAULT_DIR)")
    index.add_argument("--json", action="store_true", help="print the result as JSON")

    query = commands.add_parser("query", help="answer a question")
    query.add_argument("text")
    query.add_argument("--json", action="store_true", help="print answer and sources as JSON")
    query.add_argument("--model", help="the model that writes (default: OLLAMA_MODEL)")
    query.add_argument("--temperature", type=float, default=0.7)

    stats = commands.add_parser("stats", help="what the store holds")
    stats.add_argument("--json", action="store_true", help="print it as JSON")

    serve = commands.add_parser("serve", help="serve the API")
    serve.add_argument("--host", help="default: API_HOST")
    serve.add_argument("--port", help="default: API_PORT")
    serve.add_argument(
        "--watch", action=argparse.BooleanOptionalAction, default=None, help="follow changes (default: WATCH_DOCS)"
    )
    serve.add_argument("--reload", action="store_true", help="start again whenever the source changes, in development")

    config = commands.add_parser("config", help="show the settings and check them")
    config.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="as if it were set")
    config.add_argument("--show", action="store_true", help="with what each setting means")
    return top


def main(arguments: list[str] | None = None) -> int:
    """Runs one command."""
    arguments = sys.argv[1:] if arguments is None else arguments
    said = parser().parse_args(arguments)
    if said.command == "serve" and said.reload:
        from obelisk import reload

        rest = [word for word in arguments if word != "--reload"]
        return reload.serve(rest, lambda text: print(f"obelisk: {text}", file=sys.stderr, flush=True))
    try:
        explicit = _explicit(said)
        home = Path(os.environ["HOME"]) if os.environ.get("HOME") else None
        settings = load(os.environ, explicit, config_file(os.environ, home, Path()))
    except ConfigError as error:
        for problem in error.problems:
            print(f"error: {problem}", file=sys.stderr)
        return 2
    _log(settings)
    try:
        return _COMMANDS[said.command](said, settings)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 1


def _explicit(said: argparse.Namespace) -> dict[str, str]:
    explicit: dict[str, str] = {}
    if said.command == "serve":
        given = {"api_host": said.host, "api_port": said.port}
        explicit = {name: value for name, value in given.items() if value is not None}
        if said.watch is not None:
            explicit["watch_docs"] = str(said.watch).lower()
    elif said.command == "config":
        for pair in said.set:
            name, separator, value = pair.partition("=")
            if not separator:
                raise ConfigError([f"--set {pair} must be NAME=VALUE"])
            explicit[name.strip().lower()] = value
    return explicit


def _log(settings: Settings) -> None:
    handler = logging.StreamHandler(sys.stderr)
    if settings.log_format == "json":
        handler.setFormatter(_JsonLines())
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler], force=True)
    # One line for every request to a model is noise, except when it is asked for.
    if settings.log_level != "debug":
        logging.getLogger("httpx").setLevel(logging.WARNING)
        logging.getLogger("pymilvus").setLevel(logging.CRITICAL)


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def _index(said: argparse.Namespace, settings: Settings) -> int:
    from obelisk.rag.service import Rag

    async def run() -> int:
        rag = Rag(settings)
        try:
            if said.vault is None:
                changes = await rag.sync()
            else:
                changes = await rag.sync_from(Path(said.vault))
        finally:
            await rag.close()
        if said.json:
            print(json.dumps(vars(changes)))
        else:
            print(f"{changes.pages} pages: {changes.embedded} chunks embedded, {changes.removed} removed")
        return 0

    return _guarded(run())


def _query(said: argparse.Namespace, settings: Settings) -> int:
    from obelisk.rag.models import Ask
    from obelisk.rag.service import Rag

    async def run() -> int:
        rag = Rag(settings)
        try:
            if settings.vector_db == "memory":
                await rag.sync()
            found = await rag.find(said.text)
            ask = Ask([{"role": "user", "content": said.text}], said.temperature, None, said.model)
            pieces = []
            async for piece in rag.answer(said.text, found, ask):
                pieces.append(piece)
                if not said.json:
                    print(piece, end="", flush=True)
        finally:
            await rag.close()
        if said.json:
            answer = {"query": said.text, "answer": "".join(pieces), "sources": found.sources()}
            print(json.dumps(answer, ensure_ascii=False))
        else:
            print()
            for source in dict.fromkeys(hit.chunk.source for hit in found.hits):
                print(f"  - {source}")
        return 0

    return _guarded(run())


def _stats(said: argparse.Namespace, settings: Settings) -> int:
    from obelisk.rag.service import Rag

    async def run() -> int:
        rag = Rag(settings)
        try:
            rag.chunks = await asyncio.to_thread(rag.store.count)
            stats = rag.stats()
        finally:
            await rag.close()
        # What only a running service knows.
        del stats["indexed"], stats["page_count"]
        _print(stats, said.json)
        return 0

    return _guarded(run())


def _serve(_: argparse.Namespace, settings: Settings) -> int:
    import uvicorn

    from obelisk.rag.api import create_app
    from obelisk.rag.service import Rag

    app = create_app(Rag(settings))
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            host=settings.api_host,
            port=settings.api_port,
            log_config=None,
            access_log=settings.log_level == "debug",
            server_header=False,
            timeout_graceful_shutdown=10,
        )
    )
    # uvicorn ends in order and then sends itself the signal again; to have ended in order is status 0.
    signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        server.run()
    except SystemExit:  # uvicorn's way to say that the port is taken, with a status of its own
        return 1
    return 0 if server.started else 1


def _config(said: argparse.Namespace, settings: Settings) -> int:
    shown: dict[str, Any] = settings.shown()
    if said.show:
        for name, value in shown.items():
            print(f"# {OPTIONS[name].metadata['doc']}\n{name.upper()}={'' if value is None else value}")
    else:
        _print(shown, True)
    return 0


def _print(facts: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(facts, indent=2, ensure_ascii=False))
    else:
        width = max(len(name) for name in facts)
        for name, value in facts.items():
            print(f"{name:<{width}}  {value}")


def _guarded(work: Any) -> int:
    from obelisk.rag.models import ModelError
    from obelisk.rag.store import StoreError

    try:
        return asyncio.run(work)
    except (StoreError, ModelError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


_COMMANDS = {"index": _index, "query": _query, "stats": _stats, "serve": _serve, "config": _config}
