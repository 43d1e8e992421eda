"""This repository's images twice: by imgbuild, and by Docker from equivalent Dockerfiles on bases that mmdebstrap made."""

import json
import os
import shutil
import sys
from pathlib import Path

from measure import ROOT, TARGET, Engine, clean, measured, run

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


def venv(image: str) -> str:
    """The first lines of an image with the virtual environment of its wheels."""
    return f"""
FROM bench-trixie-build AS venv
RUN --mount=type=bind,source=wheels-{image},target=/wheels python3 -m venv --without-pip /opt/venv && \
  python3 -m pip --python /opt/venv/bin/python install --no-compile --no-index --find-links /wheels --no-deps -r /wheels/pins.txt
FROM bench-base
COPY --from=venv /opt/venv /opt/venv
"""


DOCKERFILES = {
    "base": """
FROM bench-trixie
RUN echo 'obelisk:x:10001:' >>/etc/group && echo 'obelisk:x:10001:10001::/nonexistent:/usr/sbin/nologin' >>/etc/passwd
COPY base/healthy.py /usr/local/lib/obelisk/healthy.py
USER 10001:10001
""",
    "core": venv("core") + """COPY core/serve.py core/entrypoint.sh obelisk/mkdocs.yml /app/
COPY obelisk/vault /app/vault
""",
    "init": """
FROM bench-trixie-init
COPY init/ /usr/local/bin/
USER 10001:10001
""",
    "rag": venv("rag") + """COPY rag/entrypoint.sh /app/entrypoint.sh
COPY obelisk/src /app/src
COPY obelisk/vault /app/vault
""",
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


class Twins(Engine):
    """An engine with base trees from mmdebstrap imported, and a context for the Dockerfiles."""

    def __init__(self, imgbuild: Imgbuild) -> None:
        super().__init__(WORK / "docker")
        self.context = clean(WORK / "context")
        shutil.copytree(imgbuild.project / "images", self.context, dirs_exist_ok=True)
        lock = json.loads((imgbuild.project / "images/images.lock").read_text())
        for image in ["core", "rag"]:
            folder = clean(self.context / f"wheels-{image}")
            pins = ""
            for source in lock["python"]:
                if image not in source["images"]:
                    continue
                for wheel in source["wheels"]["linux/amd64"]:
                    digest = wheel["sha256"].removeprefix("sha256:")
                    shutil.copy(imgbuild.full / "blobs-v1" / digest[:2] / digest, folder / wheel["file"])
                    pins += f"{wheel['name']}=={wheel['version']}\n"
            (folder / "pins.txt").write_text(pins)
        for image, text in DOCKERFILES.items():
            (self.context / f"{image}.Dockerfile").write_text(text.lstrip())
            (self.context / f"{image}.bytecode.Dockerfile").write_text(bytecode(image, text).lstrip())
        mirror = debian_mirror()
        for name, packages in TREES.items():
            print(f"docker: {name} by mmdebstrap", file=sys.stderr)
            tree = WORK / f"{name}.tar"
            if not tree.exists():
                words = ["mmdebstrap", "--quiet", "--mode=root", "--variant=essential", f"--include={packages}", "trixie"]
                whole = tree.with_suffix(".new.tar")
                run(*words, str(whole), f"deb {mirror} trixie main", f"deb {mirror}-security trixie-security main")
                whole.rename(tree)
            run(*self.client(), "import", str(tree), f"{name}:latest")

    def build(self, name: str, *more: str, kind: str = "") -> None:
        script = " && ".join(
            " ".join([*self.client(), "build", "--network", "none", "-q", *more, "-t", f"bench-{image}"])
            + f" -f {image}{kind}.Dockerfile ." for image in IMAGES
        )
        measured(name, ["sh", "-c", script], cwd=self.context, env={**os.environ, "DOCKER_BUILDKIT": "1"})

    def edited(self, at: int) -> None:
        with (self.context / "obelisk/vault/index.md").open("a") as page:
            page.write(f"\nEdit {at}.\n")
        self.build("docker build: one page edited")
