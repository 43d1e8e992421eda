"""This repository's images twice: by imgbuild, and by Docker from equivalent Dockerfiles on bases that mmdebstrap made."""

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

from measure import ROOT, TARGET, Engine, Registry, clean, debian, measured, plan, replaced, run, stop, variant

WORK = TARGET / "benches"
IMAGES = ["base", "core", "init", "rag"]


class Imgbuild:
    """The program, on a copy of the project and with a cache of its own."""

    def __init__(self, binary: Path) -> None:
        self.binary = binary
        self.project = clean(WORK / "project")
        shutil.copytree(ROOT / "images", self.project / "images")
        (self.project / "imgbuild.toml").write_text("")
        self.full = WORK / "cache-full"
        clean(WORK / "caches")
        self.colds = 0
        self.output = self.project / "dist"
        print("imgbuild: downloading what the lock names", file=sys.stderr)
        run(*self.command(self.full, platforms=("linux/amd64", "linux/arm64")), cwd=self.project)

    def command(self, cache: Path, *more: str, platforms: tuple[str, ...] = ("linux/amd64",)) -> list[str]:
        words = [str(self.binary), "build", *IMAGES, "--platform", ",".join(platforms), "--cache-dir", str(cache)]
        return [*words, "--progress", "quiet", *more]

    def archives(self, platforms: tuple[str, ...]) -> list[str]:
        lock = json.loads((self.project / "images/images.lock").read_text())
        entries = [entry for platform in platforms for entry in lock["debian"][platform]]
        for source in lock["python"]:
            entries += [entry for platform in platforms for entry in source["wheels"][platform]]
        return [entry["sha256"].removeprefix("sha256:") for entry in entries]

    def cold(
        self, name: str = "imgbuild: all four, downloads kept", *more: str, platforms: tuple[str, ...] = ("linux/amd64",)
    ) -> None:
        """Downloads kept; no fragments, layers, ledger, stat cache and output."""
        # Folders of their own: an ext4 without a journal makes files slowly for minutes after others were removed.
        self.colds += 1
        self.cache = clean(WORK / "caches" / str(self.colds))
        if self.output.exists():
            self.output.rename(WORK / "caches" / f"dist-{self.colds}")
        for digest in self.archives(platforms):
            at = self.cache / "blobs-v1" / digest[:2]
            at.mkdir(parents=True, exist_ok=True)
            if not (at / digest).exists():
                os.link(self.full / "blobs-v1" / digest[:2] / digest, at / digest)
        measured(name, self.command(self.cache, "--offline", "--locked", *more, platforms=platforms), cwd=self.project)

    def unchanged(self) -> None:
        measured("imgbuild: nothing changed", self.command(self.cache), cwd=self.project)

    def edited(self, at: int) -> None:
        with (self.project / "images/obelisk/vault/index.md").open("a") as page:
            page.write(f"\nEdit {at}.\n")
        measured("imgbuild: one page edited", self.command(self.cache), cwd=self.project)

    def push(self, name: str, registry: Registry, tag: str) -> None:
        """rag alone."""
        words = [str(self.binary), "push", "rag", "--platform", "linux/amd64", "--cache-dir", str(self.cache), "--progress", "quiet"]
        words += ["--locked", "--registry", f"{registry.host()}/imgbuild", "--tag", tag]
        measured(f"imgbuild: {name}", words, cwd=self.project)

    def replace(self, wheel: dict, number: int, locked: str) -> bytes:
        """Puts a variant of a wheel of rag into its place in this lock, and into the cache as if it had just been downloaded; its bytes."""
        digest = wheel["sha256"].removeprefix("sha256:")
        changed, _ = variant(self.full / "blobs-v1" / digest[:2] / digest, number)
        text = replaced(locked, wheel, changed, self.cache / "blobs-v1")
        (self.project / "images/images.lock").write_text(text)
        return changed


def venv(image: str, build: str = "bench-trixie-build", base: str = "bench-base") -> str:
    """The first lines of an image with the virtual environment of its wheels."""
    return f"""
FROM {build} AS venv
RUN --mount=type=bind,source=wheels-{image},target=/wheels python3 -m venv --without-pip /opt/venv && \
  python3 -m pip --python /opt/venv/bin/python install --no-compile --no-index --find-links /wheels --no-deps -r /wheels/pins.txt
FROM {base}
COPY --from=venv /opt/venv /opt/venv
"""


BASE = """RUN echo 'obelisk:x:10001:' >>/etc/group && echo 'obelisk:x:10001:10001::/nonexistent:/usr/sbin/nologin' >>/etc/passwd
COPY base/healthy.py /usr/local/lib/obelisk/healthy.py
USER 10001:10001
"""
RAG = """COPY rag/entrypoint.sh /app/entrypoint.sh
COPY obelisk/src /app/src
COPY obelisk/vault /app/vault
"""
DOCKERFILES = {
    "base": f"\nFROM bench-trixie\n{BASE}",
    "core": venv("core") + """COPY core/serve.py core/entrypoint.sh obelisk/mkdocs.yml /app/
COPY obelisk/vault /app/vault
""",
    "init": """
FROM bench-trixie-init
COPY init/ /usr/local/bin/
USER 10001:10001
""",
    "rag": venv("rag") + RAG,
}


def bytecode(image: str, dockerfile: str) -> str:
    """The same Dockerfile with byte-code of the standard library and of all wheels."""
    if image == "base":
        compile_all = "RUN python3 -m compileall -q --invalidation-mode unchecked-hash /usr/lib/python3.13 || true\nUSER"
        return dockerfile.replace("USER", compile_all)
    return dockerfile.replace("--no-compile ", "")


COMMON = "base-files,base-passwd,ca-certificates,netbase,tzdata"
TREES = {
    "bench-trixie": f"{COMMON},dash,python3,libstdc++6",
    "bench-trixie-build": f"{COMMON},dash,python3,python3-pip,python3-venv",
    "bench-trixie-init": f"{COMMON},bash,coreutils,curl,jq,openssl",
}


def debian_mirror() -> str:
    """The mirror that this machine's apt takes Debian from."""
    targets = run("apt-get", "indextargets", "--format", "$(ORIGIN)|$(RELEASE)|$(REPO_URI)", "Identifier: Packages")
    for line in targets.splitlines():
        origin, release, uri = line.split("|")
        if origin == "Debian" and "-" not in release:
            return uri.rstrip("/")
    sys.exit("no apt source of this machine is Debian's")


def tree(name: str) -> Path:
    """The archive of a base tree, made where it is not there."""
    made = WORK / f"{name}.tar"
    if not made.exists():
        print(f"docker: {name} by mmdebstrap", file=sys.stderr)
        mirror = debian_mirror()
        words = ["mmdebstrap", "--quiet", "--mode=root", "--variant=essential", f"--include={TREES[name]}", "trixie"]
        whole = made.with_suffix(".new.tar")
        run(*words, str(whole), f"deb {mirror} trixie main", f"deb {mirror}-security trixie-security main")
        whole.rename(made)
    return made


def wheels(imgbuild: Imgbuild, image: str, folder: Path) -> None:
    """Puts the locked wheels of an image into a folder, with their versions in `pins.txt`."""
    lock = json.loads((imgbuild.project / "images/images.lock").read_text())
    pins = ""
    for source in lock["python"]:
        if image not in source["images"]:
            continue
        for wheel in source["wheels"]["linux/amd64"]:
            digest = wheel["sha256"].removeprefix("sha256:")
            shutil.copy(imgbuild.full / "blobs-v1" / digest[:2] / digest, folder / wheel["file"])
            pins += f"{wheel['name']}=={wheel['version']}\n"
    (folder / "pins.txt").write_text(pins)


def twins_context(imgbuild: Imgbuild) -> Path:
    """A context with the Dockerfiles of all four images."""
    context = clean(WORK / "context")
    shutil.copytree(imgbuild.project / "images", context, dirs_exist_ok=True)
    for image in ["core", "rag"]:
        wheels(imgbuild, image, clean(context / f"wheels-{image}"))
    for image, text in DOCKERFILES.items():
        (context / f"{image}.Dockerfile").write_text(text.lstrip())
        (context / f"{image}.bytecode.Dockerfile").write_text(bytecode(image, text).lstrip())
    return context


class Twins(Engine):
    """An engine with base trees from mmdebstrap imported, and a context for the Dockerfiles."""

    def __init__(self, imgbuild: Imgbuild) -> None:
        super().__init__(WORK / "docker")
        self.context = twins_context(imgbuild)
        for name in TREES:
            run(*self.client(), "import", str(tree(name)), f"{name}:latest")

    def build(self, name: str, *more: str, kind: str = "") -> None:
        script = " && ".join(
            " ".join([*self.client(), "build", "--network", "none", "-q", *more, "-t", f"bench-{image}"])
            + f" -f {image}{kind}.Dockerfile ." for image in IMAGES
        )
        measured(f"docker build: {name}", ["sh", "-c", script], cwd=self.context, env={**os.environ, "DOCKER_BUILDKIT": "1"})

    def edited(self, at: int) -> None:
        with (self.context / "obelisk/vault/index.md").open("a") as page:
            page.write(f"\nEdit {at}.\n")
        self.build("one page edited")


# In a mount namespace of its own: the root becomes a mount, as engines expect, and gets what a kernel offers, a storage and the context.
START = """
set -e
mount --make-rprivate /
mount --rbind "$1" "$1"
cd "$1"
mount -t proc proc proc
mount --rbind /sys sys
mount --rbind /dev dev
mount -t tmpfs tmpfs run
mkdir -p context var/lib/docker
mount --bind "$2" var/lib/docker
mount --bind "$3" context
exec chroot . /usr/bin/env PATH=/usr/sbin:/usr/bin:/sbin:/bin dockerd --bridge none --iptables=false --ip6tables=false
"""


def current_root(binary: Path) -> Path:
    """A root with the Docker of Debian trixie, whose BuildKit has registry caches where containerd keeps the images. imgbuild makes it."""
    folder = clean(WORK / "current")
    packages = ["base-files", "docker.io", "docker-cli", "docker-buildx", "containerd", "runc", "iptables", "dash", "coreutils"]
    stage = debian(0, *packages, "libc-bin", "ca-certificates")
    stage["source"]["ignore_scripts"] = {"docker.io": "the engine is started by hand"}
    (folder / "engine.json").write_text(plan("engine", [{"step": "scratch"}, stage], {"root": 1}))
    words = [str(binary), "--progress", "quiet", "--catalogue", "engine.json", "--lock-file", "engine.lock", "--cache-dir", "cache"]
    run(*words, "lock", cwd=folder)
    run(*words, "build", "--platform", "linux/amd64", "--output", "oci:engine", cwd=folder)
    run("umoci", "unpack", "--image", f"{folder}/engine:root", str(folder / "bundle"))
    root = folder / "bundle/rootfs"
    (root / "etc/docker").mkdir(parents=True, exist_ok=True)
    (root / "etc/docker/daemon.json").write_text('{"features": {"containerd-snapshotter": true}}')
    return root


class Current:
    """The engine in such a root, with an empty storage and a build context."""

    def __init__(self, root: Path, storage: Path, context: Path) -> None:
        self.root = root
        log = storage.with_suffix(".log").open("w")
        words = ["unshare", "--mount", "sh", "-c", START, "sh", str(root), str(clean(storage)), str(context)]
        self.server = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        for _ in range(150):
            if subprocess.run(self.client("info"), capture_output=True, check=False).returncode == 0:
                return
            time.sleep(0.2)
        self.stop()
        sys.exit("dockerd did not start: " + storage.with_suffix(".log").read_text()[-2000:])

    def client(self, *words: str) -> list[str]:
        inside = ["nsenter", f"--mount=/proc/{self.server.pid}/ns/mnt", "chroot", str(self.root)]
        return [*inside, "/usr/bin/env", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "docker", *words]

    def stop(self) -> None:
        stop(self.server)


class CurrentTwins(Current):
    """The same as [`Twins`] by the BuildKit of a current Docker, and rag alone built and pushed. Its bases lie in this registry."""

    def __init__(self, imgbuild: Imgbuild, registry: Registry) -> None:
        context = twins_context(imgbuild)
        super().__init__(current_root(imgbuild.binary), WORK / "current-storage", context)
        self.context, self.registry = context, registry
        for name in TREES:
            copy = context / f"{name}.tar"
            shutil.copy(tree(name), copy)
            run(*self.client("import", f"/context/{copy.name}", f"{registry.host()}/{name}:latest"))
            run(*self.client("push", "--quiet", f"{registry.host()}/{name}:latest"))
            copy.unlink()
        # Each image on its own: the stages below come from its own file, as layers that do not depend on them.
        for image in IMAGES:
            for file in [f"{image}.Dockerfile", f"{image}.bytecode.Dockerfile"]:
                text = (context / file).read_text().replace("COPY ", "COPY --link ")
                for name in TREES:
                    text = text.replace(f"FROM {name}\n", f"FROM {registry.host()}/{name}\n").replace(f"FROM {name} ", f"FROM {registry.host()}/{name} ")
                (context / file).write_text(text.replace("FROM bench-base", f"FROM {registry.host()}/bench-base"))
        self.builds = 0
        run(*self.words("base", "", "--push", "--tag", f"{registry.host()}/bench-base"))

    def words(self, image: str, kind: str, *more: str) -> list[str]:
        file = f"/context/{image}{kind}.Dockerfile"
        return self.client("buildx", "build", "--quiet", "--network", "none", *more, "--file", file, "/context")

    def build(self, name: str, *more: str, kind: str = "") -> None:
        """All four, one after the other, with tags of their own."""
        self.builds += 1
        tag = lambda image: f"{self.registry.host()}/bench-{image}:{self.builds}"  # noqa: E731
        script = " && ".join(shlex.join(self.words(image, kind, *more, "--push", "--tag", tag(image))) for image in IMAGES)
        measured(f"BuildKit: {name}", ["sh", "-c", script])

    def push(self, name: str, tag: str) -> None:
        """rag alone."""
        measured(f"BuildKit: {name}", self.words("rag", "", "--push", "--tag", f"{self.registry.host()}/rag:{tag}"))
