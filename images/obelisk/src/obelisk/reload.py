"""A service that is started again whenever its source changes: for development, where the source is mounted.

Asking for the times of files works on every file system that containers have; notices of changes do not pass into all.
"""

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import obelisk

#: Seconds between two looks.
INTERVAL = 0.5

#: Seconds that a service may take to end.
PATIENCE = 15.0


def stamps(folder: Path) -> dict[Path, tuple[int, int]]:
    """What tells that a source file changed, without reading it."""
    found = {}
    for path in folder.rglob("*.py"):
        with contextlib.suppress(FileNotFoundError):  # an editor is at work
            stat = path.stat()
            found[path] = (stat.st_mtime_ns, stat.st_size)
    return found


def serve(arguments: list[str], say: Callable[[str], None]) -> int:
    """Runs `obelisk` with these arguments until a signal ends it. A service that ended by itself, as one does whose source
    cannot be read, waits for the next change."""
    folder = Path(obelisk.__file__).parent
    ended = False

    def end(_: int, __: FrameType | None) -> None:
        nonlocal ended
        ended = True

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    while True:
        seen = stamps(folder)
        child = subprocess.Popen([sys.executable, "-m", "obelisk", *arguments])
        told = False
        while not ended and stamps(folder) == seen:
            if child.poll() is not None and not told:
                told = True
                say(f"ended with {child.returncode}: waiting for a change of its source")
            time.sleep(INTERVAL)
        if child.poll() is None:
            child.terminate()
            try:
                child.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        if ended:
            return 0
        say("its source changed: started again")
