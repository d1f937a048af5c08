"""Guest images on this host, as vm.image.build leaves them: a directory per recipe hash with a manifest."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from vm.errors import ImageMissing


@dataclass(frozen=True, slots=True)
class RandomState:
    """Where in physical memory its kernel has the state of its random numbers: `base_crng`, and the vDSO's part."""

    base: int
    vdso: int


@dataclass(frozen=True, slots=True)
class Image:
    """A finished image. `root` is read-only and the backing file of every machine's disk.

    `registries` are the package registries that its apt, pip and npm ask, as `host:port`. `random` is None in images of
    an earlier format, whose machines cannot be forked.
    """

    hash: str
    kernel: Path
    initrd: Path
    root: Path
    root_format: str
    cmdline: str
    registries: tuple[str, ...] = ()
    random: RandomState | None = None


def image_find(cache: Path, image: str = "") -> Image:
    """The image of that hash, or the one finished last. Raises ImageMissing."""
    if image:
        if "/" in image or image.startswith("."):
            raise ImageMissing(f"{image!r} is no image's hash")
        return _load(cache / image)
    finished = sorted(cache.glob("[!.]*/manifest.json"), key=lambda path: path.stat().st_mtime)
    if not finished:
        raise ImageMissing(f"no guest image in {cache}: run `python -m vm.image.build`")
    return _load(finished[-1].parent)


def _load(place: Path) -> Image:
    try:
        manifest = json.loads((place / "manifest.json").read_text())
    except OSError as error:
        raise ImageMissing(f"image {place.name} is not on this host") from error
    return Image(
        hash=place.name,
        kernel=place / manifest["kernel"],
        initrd=place / manifest["initrd"],
        root=place / manifest["root"],
        root_format=manifest["root_format"],
        cmdline=manifest["cmdline"],
        registries=tuple(manifest.get("registries", ())),  # images of an earlier format do not say
        random=RandomState(**manifest["random"]) if "random" in manifest else None,
    )
