"""`poolkit package web|worker|loadtest`: the folder that an image is built from, and no more."""

from __future__ import annotations

import dataclasses
import os
import shlex
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from poolkit.deploy.package.contents import ProjectFiles, copy_project_code, locked_requirements
from poolkit.errors import PackageError

if TYPE_CHECKING:
    from poolkit.deploy.package.settings import PackageSettings

MARKER: Final = ".poolkit-context"
"""In every context. A folder without it was not made by this command and is not replaced."""

_PLATFORMS: Final = {"arm64": "arm64", "x86_64": "amd64"}
"""AWS's name of an instruction set to the one of image platforms."""

_DOCKERFILES: Final = ("infra/Dockerfile.{0}", "infra/{0}.Dockerfile", "infra/{0}/Dockerfile")


class ImageContext(NamedTuple):
    """What was written."""

    folder: Path
    requirements: int
    """The number of distributions that requirements.txt pins."""
    files: int
    dockerfile: Path | None
    """The one that was copied; None: the project has none for this target."""
    project_files: ProjectFiles

    def build_command(self, target: str, architecture: str) -> str:
        """Return the command that builds the image for the machine that the templates run it on."""
        platform = f"linux/{_PLATFORMS[architecture]}"
        # From the project's folder, where the other commands are given.
        folder = os.path.relpath(self.folder)
        return shlex.join(
            ["docker", "build", "--platform", platform, "--tag", f"poolkit-{target}", folder]
        )


def write_image_context(settings: PackageSettings) -> ImageContext:
    """Write requirements.txt, the sources and the Dockerfile to `settings.out_path`.

    Raises:
        PackageError: the lock lacks a distribution, or the folder is not an earlier context.
    """
    # An image has no runtime that would bring boto3.
    requirements = locked_requirements(dataclasses.replace(settings, provided=()))
    places = [settings.dockerfile] if settings.dockerfile else _DOCKERFILES
    files = (settings.root / place.format(settings.target) for place in places)
    dockerfile = next((file for file in files if file.is_file()), None)
    if settings.dockerfile and dockerfile is None:
        raise PackageError(
            f"[tool.poolkit.package.{settings.target}] dockerfile names "
            f"{settings.root / settings.dockerfile}, which is missing"
        )
    out = settings.out_path
    if out.exists() and any(out.iterdir()) and not (out / MARKER).is_file():
        raise PackageError(
            f"{out} holds files that `poolkit package` did not write; "
            "remove it, or name another folder with --out"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as work:
        folder = Path(work) / "context"
        project_files = copy_project_code(settings, folder)
        (folder / "requirements.txt").write_text("".join(requirements), encoding="utf-8")
        if dockerfile is not None:
            shutil.copyfile(dockerfile, folder / "Dockerfile")
        count = sum(path.is_file() for path in folder.rglob("*"))
        (folder / MARKER).touch()
        # COPY keeps modes and makes root the owner: with a umask of 027 or 077 the image's user
        # could read nothing.
        for path in (folder, *folder.rglob("*")):
            can_run = path.is_dir() or path.stat().st_mode & 0o100
            path.chmod(0o755 if can_run else 0o644)
        # Replaced only when the new one is whole.
        shutil.rmtree(out, ignore_errors=True)
        folder.rename(out)
    return ImageContext(out, len(requirements), count, dockerfile, project_files)
