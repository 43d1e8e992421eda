"""Builds a wheel from an sdist as PEP 517 says, with what is there: front-end.py SDIST OUT."""

import importlib
import os
import re
import shutil
import sys
import tarfile
import tomllib
import zipfile
from importlib import metadata


def unpack(sdist):
    if sdist.endswith(".zip"):
        with zipfile.ZipFile(sdist) as archive:
            archive.extractall()
    else:
        with tarfile.open(sdist) as archive:
            archive.extractall(filter="data")
    (top,) = os.listdir()
    os.chdir(top)


def build_system():
    try:
        with open("pyproject.toml", "rb") as file:
            system = tomllib.load(file).get("build-system", {})
    except FileNotFoundError:
        system = {}
    # What PEP 517 says of projects that say nothing.
    return (
        system.get("requires", ["setuptools >= 40.8.0"]),
        system.get("build-backend", "setuptools.build_meta:__legacy__"),
        system.get("backend-path", []),
    )


def missing(requirements):
    """What of the requirements is not there, or of another version."""
    try:
        from packaging.requirements import Requirement
    except ImportError:
        sys.exit("the builder lacks `packaging`, which compares versions: add Debian's python3-packaging to it")
    for text in requirements:
        requirement = Requirement(text)
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            found = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            yield f"{text}: the builder has none"
            continue
        if not requirement.specifier.contains(found, prereleases=True):
            yield f"{text}: the builder has {found}"


def check(requirements):
    lacks = list(missing(requirements))
    if lacks:
        print("the builder lacks what the sdist needs to be built:")
        for text in lacks:
            print(f"  {text}")
        sys.exit("add it to the stage of `.build_on(..)`: a Debian package, or `python(..).into_venv(path!(\"/opt/build\"))`")


def main(sdist, out):
    here = os.getcwd()
    os.makedirs(out)
    unpack(sdist)
    requires, name, paths = build_system()
    check(requires)
    sys.path[:0] = [os.path.abspath(path) for path in paths]
    module, _, attribute = name.partition(":")
    backend = importlib.import_module(module)
    for part in filter(None, attribute.split(".")):
        backend = getattr(backend, part)
    if hasattr(backend, "get_requires_for_build_wheel"):
        check(backend.get_requires_for_build_wheel({}))
    wheel = backend.build_wheel(out, {}, None)
    assert re.fullmatch(r"[^/]+\.whl", wheel), wheel
    # What is left of the build is no part of its outcome.
    os.chdir(here)
    for name in os.listdir(here):
        shutil.rmtree(name)


main(*sys.argv[1:])
