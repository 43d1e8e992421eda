#!/usr/bin/python3
"""What is files: the vault, the tokens, and the chat's data, as one archive; or put back.

    files.py save|restore

The folders of SOURCES (default: /data) are saved, each by its name. A database of SQLite is copied as one moment of it,
while the chat goes on writing. KEEP archives stay (default: 7); the newest is put back unless BACKUP names another.

`tokens/complete` says that init has completed. The file itself is not put back: what waits for init shall wait until it ran over
what was put back. An archive of tokens without it would not be put back, so none is kept, and none that is there goes for it.
"""

import contextlib
import os
import shutil
import sqlite3
import sys
import tarfile
import time
from collections.abc import Collection
from pathlib import Path

BACKUP = Path(os.environ.get("BACKUP_FOLDER", "/backup"))
SOURCES = Path(os.environ.get("SOURCES", "/data"))

#: What SQLite keeps beside a database while it is open; a copy by SQLite itself has it all.
BESIDE = ("-wal", "-shm", "-journal")


def is_database(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(16) == b"SQLite format 3\0"


#: What init leaves in the tokens' folder when it has completed.
COMPLETE = "tokens/complete"


def before_init(names: Collection[str]) -> bool:
    """Whether an archive of these names is of tokens that init had not completed."""
    return COMPLETE.split("/")[0] in names and COMPLETE not in names


def add(archive: tarfile.TarFile, path: Path, name: str, scratch: Path) -> None:
    """A file, or a database as one moment of it with the owner and mode of its file."""
    if not is_database(path):
        archive.add(path, name, recursive=False)
        return
    scratch.unlink(missing_ok=True)
    source, copy = sqlite3.connect(f"file:{path}?mode=ro", uri=True), sqlite3.connect(scratch)
    try:
        source.backup(copy)
    finally:
        source.close()
        copy.close()
    entry = archive.gettarinfo(path, name)
    entry.size = scratch.stat().st_size
    with scratch.open("rb") as file:
        archive.addfile(entry, file)
    scratch.unlink()


def save() -> None:
    for left in BACKUP.glob("files-*.part"):
        left.unlink()
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    whole, part, scratch = (BACKUP / f"files-{stamp}.{end}" for end in ("tar", "tar.part", "db.part"))
    with tarfile.open(part, "w", format=tarfile.PAX_FORMAT) as archive:
        for path in sorted(SOURCES.rglob("*")):
            name = path.relative_to(SOURCES).as_posix()
            database = next((path.with_name(path.name.removesuffix(it)) for it in BESIDE if path.name.endswith(it)), None)
            try:
                if database is not None and database.is_file() and is_database(database):
                    continue
                if path.is_file() and not path.is_symlink():
                    add(archive, path, name, scratch)
                else:
                    archive.add(path, name, recursive=False)
            except FileNotFoundError:
                continue  # the chat removed it meanwhile
        unfinished = before_init(archive.getnames())
    if unfinished:
        part.unlink()
        sys.exit(f"error: nothing was saved, and no archive was removed: there is no {COMPLETE}: wait until init has completed")
    part.rename(whole)
    print(f"saved {whole}", file=sys.stderr)
    for old in sorted(BACKUP.glob("files-*.tar"))[: -int(os.environ.get("KEEP", "7"))]:
        old.unlink()


def whole(archive: tarfile.TarFile) -> list[tarfile.TarInfo]:
    """The members that are put back, after every byte of the archive was read; an archive that is cut off is an error."""
    members = [it for it in archive if "/" in it.name and "lost+found" not in it.name.split("/")]
    # What reads headers takes a broken one, or none, for the end of the archive, which is two blocks of zeros.
    archive.fileobj.seek(archive.offset)
    if archive.fileobj.read(2 * tarfile.BLOCKSIZE) != bytes(2 * tarfile.BLOCKSIZE):
        raise tarfile.ReadError("it is cut off or damaged")
    for member in members:
        tarfile.tar_filter(member, str(SOURCES))
        if member.isreg():
            file, left = archive.extractfile(member), member.size
            while left and (read := len(file.read(1 << 20))):
                left -= read
            if left:
                raise tarfile.ReadError(f"{member.name} is cut off")
    # Each folder is emptied before it is filled, so the archive must have had it.
    names = set(archive.getnames())
    if before_init(names):
        raise tarfile.ReadError(f"it holds no {COMPLETE}: it was saved before init had completed")
    for folder in sorted(it.name for it in SOURCES.iterdir() if it.is_dir()):
        if folder not in names:
            raise tarfile.ReadError(f"it holds no folder `{folder}`")
    return [it for it in members if it.name != COMPLETE]


def restore() -> None:
    named = os.environ.get("BACKUP")
    archives = [Path(named)] if named else sorted(BACKUP.glob("files-*.tar"))
    if not archives or not archives[-1].is_file():
        sys.exit(f"error: there is no archive {named or BACKUP / 'files-*.tar'}")
    print(f"putting back {archives[-1]}", file=sys.stderr)
    with contextlib.ExitStack() as stack:
        try:
            archive = stack.enter_context(tarfile.open(archives[-1]))
            members = whole(archive)
        except (tarfile.TarError, OSError, EOFError) as error:
            sys.exit(f"error: {archives[-1]} cannot be read, and nothing was changed: {error}")
        # The folders are mounts: what is in them goes, they stay. So does what a file system keeps for itself.
        for folder in (it for it in SOURCES.iterdir() if it.is_dir()):
            for path in (it for it in folder.iterdir() if it.name != "lost+found"):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink()
        archive.extractall(SOURCES, members, filter="tar")


if __name__ == "__main__":
    commands = {"save": save, "restore": restore}
    if len(sys.argv) != 2 or sys.argv[1] not in commands:
        sys.exit("usage: files.py save|restore")
    commands[sys.argv[1]]()
