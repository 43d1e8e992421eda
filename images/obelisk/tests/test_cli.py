"""The command line, as a process of its own."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src"


@pytest.fixture
def environ(vault, models, tmp_path):
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "PYTHONPATH": str(SOURCE),
        "PYTHONDONTWRITEBYTECODE": "1",
        "VECTOR_DB": "memory",
        "VAULT_DIR": str(vault),
        "OLLAMA_URL": models.url,
        "WATCH_INTERVAL": "0.1",
    }


def obelisk(environ, *arguments, status=0):
    done = subprocess.run(
        [sys.executable, "-m", "obelisk", "rag", *arguments], env=environ, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == status, done.stderr
    return done


def test_index_tells_what_it_did(environ, vault):
    assert json.loads(obelisk(environ, "index", "--json").stdout) == {
        "pages": 3, "embedded": 3, "removed": 0, "unchanged": 0, "skipped": 0,
    }
    one = obelisk(environ, "index", "--vault", str(vault / "index.md"))
    assert one.stdout == "1 pages: 1 chunks embedded, 0 removed\n"
    missing = obelisk(environ, "index", "--vault", str(vault / "gone.md"), status=1)
    assert missing.stderr.strip().splitlines()[-1].startswith("error: ") and "gone.md" in missing.stderr


def test_query_answers_with_its_sources(environ):
    answer = json.loads(obelisk(environ, "query", "Which wildcat has tufted ears?", "--json").stdout)
    assert "caracal" in answer["answer"] and answer["sources"][0]["source"] == "animals/cats.md"
    text = obelisk(environ, "query", "Which wildcat has tufted ears?").stdout
    assert "caracal" in text and "  - animals/cats.md" in text


def test_stats_and_config_show_facts_and_no_secrets(environ):
    environ["API_TOKEN"] = "canary"
    assert json.loads(obelisk(environ, "stats", "--json").stdout)["vector_db"] == "memory"
    shown = obelisk(environ, "config", "--set", "chunk_size=1000", "--show").stdout
    assert "CHUNK_SIZE=1000" in shown and "API_TOKEN=***" in shown and "canary" not in shown
    assert json.loads(obelisk(environ, "config").stdout)["chunk_size"] == 2500


def test_wrong_settings_and_words_are_status_2(environ):
    wrong = obelisk({**environ, "API_PORT": "0", "CHUNK_SIZE": "x"}, "stats", status=2)
    assert len(wrong.stderr.splitlines()) == 2 and all(line.startswith("error: ") for line in wrong.stderr.splitlines())
    obelisk(environ, "config", "--set", "chunk_size", status=2)
    obelisk(environ, "nonsense", status=2)


def test_what_is_away_is_status_1_and_one_line(environ):
    failed = obelisk({**environ, "OLLAMA_URL": "http://127.0.0.1:9"}, "index", status=1)
    assert failed.stderr.count("\n") == 1 and "http://127.0.0.1:9" in failed.stderr


def test_serve_answers_logs_json_and_ends_when_told(environ):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "obelisk", "rag", "serve", "--host", "127.0.0.1", "--port", str(port)]
    server = subprocess.Popen(command, env={**environ, "LOG_FORMAT": "json"}, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5) as answer:
                    assert answer.status == 200
                    break
            except OSError:
                assert server.poll() is None and time.monotonic() < deadline
                time.sleep(0.05)
        taken = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60)
        assert taken.returncode == 1 and "address already in use" in taken.stderr
    finally:
        server.send_signal(signal.SIGTERM)
        _, errors = server.communicate(timeout=30)
    assert server.returncode == 0
    lines = [json.loads(line) for line in errors.splitlines()]
    assert all({"time", "level", "logger", "message"} <= set(line) for line in lines)


def test_a_changed_source_is_served_at_once(environ, tmp_path):
    source = tmp_path / "src"
    shutil.copytree(SOURCE, source, ignore=shutil.ignore_patterns("__pycache__"))
    api = source / "obelisk/rag/api.py"
    text = api.read_text()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environ["PYTHONPATH"] = str(source)

    def answer() -> str:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5) as said:
                return said.read().decode()
        except OSError:
            return ""

    def until(wanted: str) -> None:
        limit = time.monotonic() + 60
        while wanted not in answer():
            assert time.monotonic() < limit and service.poll() is None
            time.sleep(0.05)

    command = [sys.executable, "-m", "obelisk", "rag", "serve", "--reload", "--host", "127.0.0.1", "--port", str(port)]
    log = tmp_path / "log"
    with log.open("w") as stderr, subprocess.Popen(command, env=environ, stderr=stderr) as service:
        until('"ok"')
        # Source that cannot be read ends the service, not who starts it.
        api.write_text("def (\n")
        limit = time.monotonic() + 60
        while "waiting for a change of its source" not in log.read_text():
            assert time.monotonic() < limit and service.poll() is None
            time.sleep(0.05)
        assert answer() == "" and '"status": "ok"' in text
        api.write_text(text.replace('"status": "ok"', '"status": "changed"'))
        until('"changed"')
        service.send_signal(signal.SIGTERM)
        assert service.wait(60) == 0
    assert log.read_text().count("its source changed: started again") >= 2
