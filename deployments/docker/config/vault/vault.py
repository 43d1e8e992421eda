#!/usr/bin/python3
"""Documents into the vault's claim.

    vault.py fill FROM VAULT     the pages of FROM, where the vault holds nothing yet; else nothing is changed
    vault.py put VAULT           a tar archive from the standard input, over what is there
    vault.py replace VAULT       the same, and what the archive lacks is removed
"""

import os
import shutil
import sys
import tarfile
from pathlib import Path

#: What a file system keeps for itself.
KEPT = "lost+found"


def entries(vault: Path, scratch: Path) -> list[Path]:
    return [it for it in vault.iterdir() if it.name != KEPT and it != scratch]


def fill(source: Path, vault: Path) -> None:
    # Hidden, so nobody takes it for pages. All pages are there before the first is moved to its place: whoever is ended in
    # between finds them the next time.
    scratch = vault / ".filling"
    if not entries(vault, scratch):
        shutil.rmtree(scratch, ignore_errors=True)
        shutil.copytree(source, scratch)
    elif not scratch.is_dir():
        print("the vault has documents: unchanged", file=sys.stderr)
        return
    for path in sorted(scratch.iterdir()):
        path.rename(vault / path.name)
    scratch.rmdir()
    print(f"filled from {source}", file=sys.stderr)


def put(vault: Path, only: bool) -> None:
    told: set[Path] = set()
    try:
        with tarfile.open(fileobj=sys.stdin.buffer, mode="r|*") as archive:
            for member in archive:
                path = vault / os.path.normpath(member.name)
                if path == vault:
                    continue  # the folder itself belongs to the claim
                archive.extract(member, vault, filter="data")
                told.update((path, *path.parents))
    except tarfile.TarError as error:
        sys.exit(f"error: the standard input is no tar archive, or not all of one: {error}; nothing was removed")
    if not told:
        sys.exit("error: the archive holds nothing: nothing was changed")
    if only:
        for path in sorted(vault.rglob("*"), reverse=True):
            if path in told or KEPT in path.relative_to(vault).parts:
                continue
            if path.is_dir() and not path.is_symlink():
                path.rmdir()
            else:
                path.unlink()
    print(f"{len([it for it in told if it.is_file()])} files put", file=sys.stderr)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["fill", source, vault]:
            fill(Path(source), Path(vault))
        case ["put" | "replace" as command, vault]:
            put(Path(vault), command == "replace")
        case _:
            sys.exit("usage: vault.py fill FROM VAULT | put VAULT | replace VAULT")
