"""Pages of the vault: which files they are, and what front matter says about them."""

import logging
import math
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


class Unreadable(OSError):
    """A page that is there and cannot be read."""


class Vault:
    """A folder of Markdown pages. Hidden files and folders (`.obsidian`, `.trash`) are not part of it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        #: Files and folders whose names are not UTF-8, in escaped form: no answer could name them as a source.
        self.unnamed: set[str] = set()
        #: Folders that are there and cannot be read: what is known of their pages is not to be forgotten.
        self.unreadable: set[str] = set()

    def scan(self) -> dict[str, Stamp]:
        """All pages with their stamps.

        Raises OSError if the vault itself cannot be read: a vault that is not mounted is not an empty vault, and
        taking it for one would delete every page from the store.
        """
        found: dict[str, Stamp] = {}
        unnamed: set[str] = set()
        unreadable: set[str] = set()
        pending = [self.root]
        while pending:
            folder = pending.pop()
            try:
                entries = list(os.scandir(folder))
            except OSError as error:
                if folder == self.root:
                    raise
                # It may have gone away between two looks.
                if not isinstance(error, (FileNotFoundError, NotADirectoryError)):
                    name = folder.relative_to(self.root).as_posix()
                    unreadable.add(name)
                    if name not in self.unreadable:
                        log.warning("folder %s cannot be read; its pages stay as they are known: %s", name, error)
                continue
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
        self.unnamed, self.unreadable = unnamed, unreadable
        return dict(sorted(found.items()))

    def is_unreadable(self, source: str) -> bool:
        """Whether a page lies in a folder that could not be read."""
        return any(source.startswith(f"{folder}/") for folder in self.unreadable)

    def read(self, source: str) -> Page | None:
        """Reads a page; `None` if it is gone or too large. Raises Unreadable."""
        path = self.root / source
        try:
            if path.stat().st_size > MAX_PAGE:
                log.warning("page %s is larger than %d bytes and left out", source, MAX_PAGE)
                return None
            text = path.read_bytes().decode("utf-8", errors="replace")
        except FileNotFoundError:
            return None
        except OSError as error:
            raise Unreadable(f"it cannot be read: {error.strerror or error}") from error
        return parse(source, text)


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _can_be_kept(value: Scalar) -> bool:
    """Whether a store can hold a value: text that can be encoded, whole numbers of 64 bits, numbers that are some."""
    if isinstance(value, str):
        return _is_utf8(value)
    if isinstance(value, float):
        return math.isfinite(value)
    return -(2**63) <= value < 2**63


def parse(source: str, text: str) -> Page:
    """Takes front matter off a page. Of its values only text, numbers and truth values that a store can hold are kept."""
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
            kept = {str(key): value for key, value in values.items() if isinstance(value, Scalar)}
            metadata = {key: value for key, value in kept.items() if _is_utf8(key) and _can_be_kept(value)}
    if not isinstance(metadata.get("title"), str):
        metadata["title"] = _title(body) or Path(source).stem
    return Page(source=source, text=body, metadata=metadata)


def _title(text: str) -> str | None:
    for line in text.splitlines():
        if line.startswith("# "):
            return line[2:].strip() or None
    return None
