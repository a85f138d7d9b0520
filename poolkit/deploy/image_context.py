"""`poolkit package web|worker`: the folder that an image is built from, and nothing else in it."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from poolkit.deploy.locked_wheels import locked_requirements
from poolkit.deploy.project_code import copy_project_code
from poolkit.errors import PackageError

if TYPE_CHECKING:
    from poolkit.deploy.package_settings import PackageSettings

MARK: Final = ".poolkit-context"
"""In every context: a folder without it is somebody else's and is not replaced."""

_DOCKERFILES: Final = ("infra/Dockerfile.{0}", "infra/{0}.Dockerfile", "infra/{0}/Dockerfile")


class ImageContext(NamedTuple):
    """What was written."""

    folder: Path
    requirements: int
    """How many distributions requirements.txt pins."""
    files: int
    dockerfile: Path | None
    """Which one was copied; None: the project has none for this target."""
    left_out: list[str]


def write_image_context(settings: PackageSettings) -> ImageContext:
    """Write requirements.txt, the sources and the Dockerfile to `settings.out_path`.

    Raises:
        PackageError: the lock lacks something, or the folder is not an earlier context.
    """
    # An image has no runtime that would bring boto3.
    requirements = locked_requirements(dataclasses.replace(settings, provided=()))
    dockerfile = _dockerfile(settings)
    _require_ours(settings.out_path)
    settings.out_path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=settings.out_path.parent) as work:
        folder = Path(work) / "context"
        left_out = copy_project_code(settings, folder)
        (folder / "requirements.txt").write_text("".join(requirements), encoding="utf-8")
        if dockerfile is not None:
            shutil.copyfile(dockerfile, folder / "Dockerfile")
        files = sum(path.is_file() for path in folder.rglob("*"))
        (folder / MARK).touch()
        # Replaced only when the new one is whole.
        shutil.rmtree(settings.out_path, ignore_errors=True)
        folder.rename(settings.out_path)
    return ImageContext(settings.out_path, len(requirements), files, dockerfile, left_out)


def _dockerfile(settings: PackageSettings) -> Path | None:
    if settings.dockerfile:
        named = settings.root / settings.dockerfile
        if not named.is_file():
            raise PackageError(
                f"[tool.poolkit.package.{settings.target}] dockerfile names {named}, "
                "which is not there"
            )
        return named
    places = (settings.root / place.format(settings.target) for place in _DOCKERFILES)
    return next((place for place in places if place.is_file()), None)


def _require_ours(folder: Path) -> None:
    if folder.exists() and any(folder.iterdir()) and not (folder / MARK).is_file():
        raise PackageError(
            f"{folder} holds something that `poolkit package` did not write; "
            "remove it, or name another folder with --out"
        )
