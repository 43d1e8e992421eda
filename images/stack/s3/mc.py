#!/opt/venv/bin/python
"""The commands of MinIO's client `mc` that the backup scripts use, over any S3 server.

    mc --config-dir DIR alias set NAME URL      (user and password: a line each of the standard input; as words, where every
                                                 process of the machine could read them, they are refused)
    mc --config-dir DIR ls NAME
    mc --config-dir DIR mb --ignore-existing NAME/BUCKET
    mc --config-dir DIR rb --force NAME/BUCKET
    mc --config-dir DIR mirror --overwrite --remove SOURCE TARGET

A side of `mirror` is a folder, an alias (every bucket) or ALIAS/BUCKET.
"""

import json
import sys
from pathlib import Path
from urllib.parse import urlsplit

from minio import Minio


class Usage(Exception):
    """Words that are not understood."""


def store(folder: Path, name: str) -> Minio | None:
    file = folder / f"{name}.json"
    if not file.is_file():
        return None
    it = json.loads(file.read_text())
    url = urlsplit(it["url"])
    return Minio(url.netloc, it["user"], it["password"], secure=url.scheme == "https")


def split(folder: Path, text: str) -> tuple[Minio, str] | None:
    """The server and bucket (empty: every bucket) that a word names; `None`: it is a folder."""
    name, _, bucket = text.partition("/")
    found = store(folder, name) if name else None
    return (found, bucket.strip("/")) if found else None


def listed(server: Minio, bucket: str) -> set[str]:
    return {it.object_name for it in server.list_objects(bucket, recursive=True) if not it.is_dir}


def download(server: Minio, bucket: str, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    names = listed(server, bucket)
    for name in sorted(names):
        path = target / name
        if not path.resolve().is_relative_to(target.resolve()):
            raise ValueError(f"the object {name!r} would leave {target}")
        path.parent.mkdir(parents=True, exist_ok=True)
        server.fget_object(bucket, name, str(path))
    for path in target.rglob("*"):
        if path.is_file() and str(path.relative_to(target)) not in names:
            path.unlink()


def upload(source: Path, server: Minio, bucket: str) -> None:
    files = {str(path.relative_to(source)): path for path in source.rglob("*") if path.is_file()}
    for name, path in sorted(files.items()):
        server.fput_object(bucket, name, str(path))
    for name in sorted(listed(server, bucket) - set(files)):
        server.remove_object(bucket, name)


def run(words: list[str]) -> None:
    if words[:1] != ["--config-dir"] or len(words) < 3:
        raise Usage
    folder = Path(words[1])
    match words[2:]:
        case ["alias", "set", name, url]:
            user, password, *_ = sys.stdin.read().split("\n")
            folder.mkdir(parents=True, exist_ok=True)
            file = folder / f"{name}.json"
            file.touch(0o600)
            file.write_text(json.dumps({"url": url, "user": user, "password": password}))
        case ["ls", place]:
            found = split(folder, place)
            if found is None or found[1]:
                raise Usage
            for bucket in found[0].list_buckets():
                print(f"[{bucket.creation_date:%Y-%m-%d %H:%M:%S} UTC]     0B {bucket.name}/")
        case ["rb", "--force", place]:
            found = split(folder, place)
            if found is None or not found[1]:
                raise Usage
            for name in listed(*found):
                found[0].remove_object(found[1], name)
            found[0].remove_bucket(found[1])
        case ["mb", "--ignore-existing", place]:
            found = split(folder, place)
            if found is None or not found[1]:
                raise Usage
            if not found[0].bucket_exists(found[1]):
                found[0].make_bucket(found[1])
        case ["mirror", "--overwrite", "--remove", source, target]:
            match split(folder, source), split(folder, target):
                case (server, ""), None:
                    for bucket in server.list_buckets():
                        download(server, bucket.name, Path(target) / bucket.name)
                case (server, bucket), None:
                    download(server, bucket, Path(target))
                case None, (server, bucket) if bucket:
                    upload(Path(source), server, bucket)
                case _:
                    raise Usage
        case _:
            raise Usage


if __name__ == "__main__":
    try:
        run(sys.argv[1:])
    except Usage:
        sys.exit(__doc__)
