"""What the benchmarks of registries share: programs that are measured, an empty registry, a line with a delay."""

import asyncio
import base64
import contextlib
import csv
import datetime
import hashlib
import io
import json
import os
import platform
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
results: dict[str, list[dict]] = {}


def run(*command: str, **options) -> str:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, check=False, **options)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)} failed with status {done.returncode}")
    return done.stdout


# Runs a command and tells of it: a process that is small itself, since the largest resident set that the kernel tells of a child
# begins with that of who started it.
RUNNER = """
import os, sys, time
os.set_inheritable(int(sys.argv[1]), False)
began = time.perf_counter()
child = os.posix_spawnp(sys.argv[2], sys.argv[2:], os.environ)
_, status, usage = os.wait4(child, 0)
told = time.perf_counter() - began, usage.ru_utime + usage.ru_stime, usage.ru_maxrss, os.waitstatus_to_exitcode(status)
os.write(int(sys.argv[1]), " ".join(map(str, told)).encode())
"""


def measured(name: str, command: list[str], **options) -> tuple[str, str]:
    """Runs a command; keeps wall clock, processor time and the largest resident set of it. Gives stdout and stderr."""
    # What was written so far is not to be written out while the clock runs.
    os.sync()
    told, tell = os.pipe()
    with tempfile.TemporaryFile() as complaints:
        words = [sys.executable, "-I", "-S", "-c", RUNNER, str(tell), *command]
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": complaints, "pass_fds": [tell]}
        child = subprocess.Popen(words, **streams, **options)
        os.close(tell)
        said = child.stdout.read().decode()
        child.wait()
        complaints.seek(0)
        complained = complaints.read().decode(errors="replace")
    with open(told) as it:
        record = it.read().split()
    if len(record) != 4 or record[3] != "0":
        sys.exit(f"{name}: {' '.join(command)} failed\n{complained}")
    record = {"seconds": round(float(record[0]), 4), "cpu": round(float(record[1]), 3), "peak_kib": int(record[2])}
    results.setdefault(name, []).append(record)
    return said, complained


def imgbuild_binary() -> Path:
    """The program that is measured: `IMGBUILD`, or this repository's release build."""
    binary = Path(os.environ.get("IMGBUILD", TARGET / "release/imgbuild")).resolve()
    if not binary.exists():
        sys.exit(f"there is no {binary}: run `cargo build --release` first")
    return binary


def clean(folder: Path) -> Path:
    """A new folder, empty; below `target` far from what was removed there."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    if TARGET in folder.parents:
        spread(folder.parent)
    shutil.rmtree(folder, ignore_errors=True)
    # An ext4 chooses the place by the name: of the same one it would be where the last one was.
    new = folder.with_name(f"{folder.name}-{os.getpid()}-{time.monotonic_ns()}")
    new.mkdir()
    new.rename(folder)
    return folder


def spread(folder: Path) -> None:
    """An ext4 without a journal makes files slowly for minutes where others were removed. Other file systems have no such flag, or no `chattr`."""
    with contextlib.suppress(FileNotFoundError):
        subprocess.run(["chattr", "+T", str(folder)], stderr=subprocess.DEVNULL, check=False)


def free_port() -> int:
    with socket.socket() as it:
        it.bind(("127.0.0.1", 0))
        return it.getsockname()[1]


# What tests/tools unpacks of Debian's current release, and what the machine's own has: nearly the same program, built by different
# releases of Go. The newer one hashes with the processor's instructions for SHA-256.
CURRENT_REGISTRY = Path(os.environ.get("IMGBUILD_TEST_CACHE") or TARGET / "tests") / "trixie/root/usr/bin/docker-registry"
OWN_REGISTRY = "docker-registry"


def registry_program() -> str:
    """The docker-registry of Debian's current release, or the machine's own where that is not there."""
    return str(CURRENT_REGISTRY) if CURRENT_REGISTRY.exists() else OWN_REGISTRY


def registry_version(program: str) -> str | None:
    """What a docker-registry is, and what built it; `None` where it is not there."""
    found = shutil.which(program)
    if found is None:
        return None
    go = re.search(rb"go1\.\d+(\.\d+)?", Path(found).read_bytes())
    return f"{run(found, '--version').split()[-1]}, {go.group().decode() if go else 'unknown Go'}"


class Registry:
    """An empty docker-registry."""

    def __init__(self, folder: Path, program: str | None = None) -> None:
        program = program or registry_program()
        self.port = free_port()
        self.folder = clean(folder)
        config = self.folder / "config.yml"
        config.write_text(
            f"version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\n"
            f"storage: {{filesystem: {{rootdirectory: {self.folder}/data}}}}\nhttp: {{addr: 127.0.0.1:{self.port}}}\n"
        )
        log = (self.folder / "log").open("w")
        self.server = subprocess.Popen([program, "serve", str(config)], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        for _ in range(200):
            try:
                socket.create_connection(("127.0.0.1", self.port)).close()
                return
            except OSError:
                time.sleep(0.05)
        self.stop()
        sys.exit(f"{program} did not start: " + (self.folder / "log").read_text()[-2000:])

    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def __enter__(self) -> "Registry":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        stop(self.server)
        shutil.rmtree(self.folder, ignore_errors=True)


def stop(server: subprocess.Popen) -> None:
    server.send_signal(signal.SIGTERM)
    try:
        server.wait(timeout=30)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


class Engine:
    """A Docker engine of our own, without networks."""

    def __init__(self, folder: Path) -> None:
        self.folder = clean(folder)
        self.socket = f"unix:///tmp/imgbuild-bench-{os.getpid()}.sock"
        words = ["dockerd", "--data-root", str(self.folder / "data"), "--exec-root", f"/tmp/imgbuild-bench-{os.getpid()}"]
        words += ["--host", self.socket, "--pidfile", str(self.folder / "pid"), "--bridge", "none"]
        words += ["--iptables=false", "--ip6tables=false"]
        log = (self.folder / "log").open("w")
        self.server = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        for _ in range(300):
            if subprocess.run([*self.client(), "info"], capture_output=True, check=False).returncode == 0:
                return
            time.sleep(0.2)
        self.stop()
        sys.exit("dockerd did not start: " + (self.folder / "log").read_text()[-2000:])

    def client(self) -> list[str]:
        return ["/usr/bin/docker", "--host", self.socket]

    def stop(self, keep: bool = False) -> None:
        stop(self.server)
        # Its network namespace stays mounted.
        subprocess.run(["umount", f"/tmp/imgbuild-bench-{os.getpid()}/netns/default"], capture_output=True, check=False)
        shutil.rmtree(f"/tmp/imgbuild-bench-{os.getpid()}", ignore_errors=True)
        Path(self.socket.removeprefix("unix://")).unlink(missing_ok=True)
        if not keep:
            shutil.rmtree(self.folder, ignore_errors=True)


class Line:
    """Passes bytes to a server on loopback and back, each `delay` seconds late, `rate` a second in each direction."""

    def __init__(self, port: int, delay: float, rate: float = float("inf")) -> None:
        self.to, self.delay, self.rate = port, delay, rate
        self.free = {"sent": 0.0, "received": 0.0}
        self.port = free_port()
        self.sent = 0
        self.received = 0
        self.connections = 0
        self.loop = asyncio.new_event_loop()
        up = threading.Event()
        threading.Thread(target=self._serve, args=(up,), daemon=True).start()
        up.wait()

    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def _serve(self, up: threading.Event) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_until_complete(asyncio.start_server(self._connection, "127.0.0.1", self.port, backlog=512))
        self.loop.call_soon(up.set)
        self.loop.run_forever()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            back_reader, back_writer = await asyncio.open_connection("127.0.0.1", self.to)
        except OSError:
            writer.close()
            return
        await asyncio.gather(self._pass(reader, back_writer, "sent"), self._pass(back_reader, writer, "received"))

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, counter: str) -> None:
        pieces: asyncio.Queue = asyncio.Queue()

        async def deliver() -> None:
            while True:
                due, piece = await pieces.get()
                await asyncio.sleep(max(0.0, due - self.loop.time()))
                try:
                    if piece is None:
                        writer.close()
                        return
                    writer.write(piece)
                    await writer.drain()
                except OSError:
                    return

        task = self.loop.create_task(deliver())
        while True:
            try:
                piece = await reader.read(1 << 18)
            except OSError:
                piece = b""
            setattr(self, counter, getattr(self, counter) + len(piece))
            self.free[counter] = max(self.free[counter], self.loop.time()) + len(piece) / self.rate
            pieces.put_nowait((self.free[counter] + self.delay, piece or None))
            if not piece:
                break
        await task


def plan(name: str, stages: list[dict], images: dict[str, int]) -> str:
    """A catalogue as its JSON (layers/src/plan.rs): stages from the first one up, and the stage of each image."""
    config: dict = {"user": None, "workdir": None, "env": [], "expose": [], "volumes": [], "entrypoint": None, "cmd": None}
    config |= {"labels": {}, "healthcheck": None, "stop_signal": None}
    layered = {name: {"stage": at, "config": config, "layerBudget": 40} for name, at in images.items()}
    return json.dumps({"imgbuildPlan": 1, "catalogue": name, "stages": stages, "images": layered})


# What rag has imported when it answers, in wheels and in the standard library.
RAG_IMPORTS = "anyio.* certifi fastapi httpcore httpx opentelemetry.* orjson pydantic.* uvicorn.* yaml".split()
STANDARD_IMPORTS = """argparse asyncio calendar colorsys concurrent.futures.thread configparser email.message email.parser encodings.idna encodings.utf_8
fractions html http.client http.cookiejar http.cookies importlib.metadata importlib.resources inspect ipaddress json logging.config lzma mimetypes
multiprocessing.connection pathlib pickle platform quopri random runpy secrets shlex site socketserver ssl subprocess tempfile typing urllib.request uuid
zipfile zipimport zoneinfo""".split()


def with_bytecode(binary: Path, project: Path) -> list[str]:
    """Flags for the catalogue of a copy of the project, with byte-code of the standard library and of all wheels."""
    return flags_of(binary, project, "bytecode.json", [], "all", "all")


def with_bytecode_of_imports(binary: Path, project: Path) -> list[str]:
    """Flags for rag alone, with byte-code of what it imports to answer."""
    return flags_of(binary, project, "imports.json", ["rag"], {"imported-by": RAG_IMPORTS}, {"imported-by": STANDARD_IMPORTS})


def flags_of(binary: Path, project: Path, file: str, images: list[str], wheels: object, standard: object) -> list[str]:
    catalogue = json.loads(run(str(binary), "plan", "--format", "json", *images, cwd=project))
    for source in (stage.get("source", {}) for stage in catalogue["stages"]):
        if source.get("kind") == "python":
            source["bytecode"] = wheels
        elif "python3" in source.get("packages", []):
            source["bytecode"] = standard
    (project / file).write_text(json.dumps(catalogue))
    return ["--catalogue", file, "--context", "images/obelisk", "--lock-file", "images/images.lock"]


def variant(wheel: Path, number: int) -> tuple[bytes, int]:
    """The wheel with a line more in its METADATA, and its bytes unpacked."""
    out = io.BytesIO()
    unpacked = 0
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(out, "w") as new:
        names = [it.filename for it in old.infolist()]
        record = next(name for name in names if name.endswith(".dist-info/RECORD"))
        metadata = record.removesuffix("RECORD") + "METADATA"
        text = old.read(metadata) + f"\nVariant {number}.\n".encode()
        digest = base64.urlsafe_b64encode(hashlib.sha256(text).digest()).rstrip(b"=").decode()
        rows = list(csv.reader(io.StringIO(old.read(record).decode())))
        rows = [[name, f"sha256={digest}", str(len(text))] if name == metadata else [name, *rest] for name, *rest in rows]
        lines = io.StringIO()
        csv.writer(lines, lineterminator="\n").writerows(rows)
        for it in old.infolist():
            data = {metadata: text, record: lines.getvalue().encode()}.get(it.filename) or old.read(it)
            unpacked += len(data)
            new.writestr(it, data, it.compress_type)
    return out.getvalue(), unpacked


def replaced(locked: str, wheel: dict, changed: bytes, blobs: Path, **more: str) -> str:
    """The lock with these bytes in the place of a wheel of rag; they are put into a cache's blobs as if they had just been downloaded."""
    digest = hashlib.sha256(changed).hexdigest()
    (blobs / digest[:2]).mkdir(exist_ok=True)
    (blobs / digest[:2] / digest).write_bytes(changed)
    # Other images have some of the wheels in their own parts of the lock.
    place = locked.index(wheel["sha256"], locked.index('["rag"]', locked.index('"python"')))
    start, end = locked.rindex("{", 0, place), locked.index("}", place) + 1
    entry = json.loads(locked[start:end]) | {"sha256": f"sha256:{digest}", "size": len(changed)} | more
    return locked[:start] + json.dumps(entry, separators=(",", ":")) + locked[end:]


OWNER = {"uid": 0, "gid": 0}


def files(below: int, path: str, to: str) -> dict:
    """A stage with files of the context."""
    source = {"kind": "files", "from": path, "to": to, "include": [], "exclude": [], "mode": None, "dir_mode": 0o755}
    return {"step": "layer", "below": below, "source": source | {"owner": OWNER}}


def inline(below: int, path: str, text: str) -> dict:
    """A stage with a file of this text."""
    source = {"kind": "inline", "text": text, "path": path, "mode": 0o644, "owner": OWNER}
    return {"step": "layer", "below": below, "source": source}


def debian(below: int, *packages: str) -> dict:
    """A stage with Debian packages."""
    source = {"kind": "debian", "packages": packages, "without": [], "recommends": False, "exclude": [], "effects": {}}
    source |= {"ignore_scripts": {}, "allow_missing": [], "repositories": []}
    return {"step": "layer", "below": below, "source": source}


def head(load_before: tuple[float, float, float], *, registry: bool = False) -> dict:
    """When, of what and where something was measured, and with which registry where there was one."""
    return {
        **({"registry": registry_version(registry_program())} if registry else {}),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        # What was built elsewhere says itself of what.
        "commit": os.environ.get("IMGBUILD_COMMIT") or run("git", "rev-parse", "--short", "HEAD", cwd=ROOT).strip(),
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "load_before": [round(it, 2) for it in load_before],
        "load_after": [round(it, 2) for it in os.getloadavg()],
    }
