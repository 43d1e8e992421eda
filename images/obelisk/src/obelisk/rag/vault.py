"""Pages of the vault: which files they are, and what front matter says about them."""

import logging
import os
from dataclasses import dataclass, field
from pathlib import Path

import yaml

log = logging.getLogger(__name__)

SUFFIXES = (".md", ".markdown")

#: A page larger than this is not something a person wrote; it is left out with a warning. Bytes.
MAX_PAGE = 4 << 20

Scalar = str | int | float | bool


@dataclass(frozen=True)
class Page:
    """One page: its path below the vault with forward slashes, its text without front matter, and its metadata."""

    source: str
    text: str
    metadata: dict[str, Scalar] = field(default_factory=dict)


@dataclass(frozen=True)
class Stamp:
    """What tells that a file changed, without reading it."""

    mtime_ns: int
    size: int
    inode: int


class Vault:
    """A folder of Markdown pages. Hidden files and folders (`.obsidian`, `.trash`) are not part of it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        #: Files and folders whose names are not UTF-8, in escaped form: no answer could name them as a source.
        self.unnamed: set[str] = set()

    def scan(self) -> dict[str, Stamp]:
        """All pages with their stamps.

        Raises OSError if the vault itself cannot be read: a vault that is not mounted is not an empty vault, and
        taking it for one would delete every page from the store.
        """
        found: dict[str, Stamp] = {}
        unnamed: set[str] = set()
        pending = [self.root]
        while pending:
            folder = pending.pop()
            try:
                entries = list(os.scandir(folder))
            except OSError:
                if folder == self.root:
                    raise
                continue  # a folder that went away between two looks
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if not _is_utf8(entry.name):
                    path = Path(entry.path).relative_to(self.root).as_posix()
                    unnamed.add(path.encode("utf-8", "backslashreplace").decode())
                    continue
                try:
                    # Links are not followed: they may lead out of the vault or back into it.
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(Path(entry.path))
                    elif entry.is_file(follow_symlinks=False) and entry.name.lower().endswith(SUFFIXES):
                        stat = entry.stat(follow_symlinks=False)
                        stamp = Stamp(stat.st_mtime_ns, stat.st_size, stat.st_ino)
                        found[Path(entry.path).relative_to(self.root).as_posix()] = stamp
                except OSError:
                    continue
        for name in sorted(unnamed - self.unnamed):
            log.warning("%s is skipped: its name is not UTF-8", name)
        self.unnamed = unnamed
        return dict(sorted(found.items()))

    def read(self, source: str) -> Page | None:
        """Reads a page; `None` if it is gone or too large."""
        path = self.root / source
        try:
            if path.stat().st_size > MAX_PAGE:
                log.warning("page %s is larger than %d bytes and left out", source, MAX_PAGE)
                return None
            text = path.read_bytes().decode("utf-8", errors="replace")
        except FileNotFoundError:
            return None
        return parse(source, text)


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def parse(source: str, text: str) -> Page:
    """Takes front matter off a page. Of its values only text, numbers and truth values are kept."""
    text = text.removeprefix("\ufeff").replace("\r\n", "\n")
    body, head = text, None
    if text.startswith("---\n"):
        end = text.find("\n---\n", 3)
        if end < 0 and text.endswith("\n---"):
            end = len(text) - 4
        if end >= 0:
            head, body = text[4 : end + 1], text[end + 5 :]
    metadata: dict[str, Scalar] = {}
    if head is not None:
        try:
            values = yaml.safe_load(head)
        except yaml.YAMLError as error:
            log.warning("front matter of %s is not YAML and ignored: %s", source, str(error).splitlines()[0])
            values = None
        if isinstance(values, dict):
            metadata = {str(key): value for key, value in values.items() if isinstance(value, Scalar)}
    if not isinstance(metadata.get("title"), str):
        metadata["title"] = _title(body) or Path(source).stem
    return Page(source=source, text=body, metadata=metadata)


def _title(text: str) -> str | None:
    for line in text.splitlines():
        if line.startswith("# "):
            return line[2:].strip() or None
    return None
