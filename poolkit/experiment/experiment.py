"""What an experiment is, and where its file is found."""

from __future__ import annotations

import difflib
import importlib.util
import inspect
import math
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args, get_origin

import poolkit
from poolkit.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import ModuleType

Need: TypeAlias = Literal["own server", "linux", "pgbouncer", "mariadb", "mongodb"]
"""What an experiment cannot do without. "own server": it restarts PostgreSQL, or sets it up; "linux":
it reads /proc."""
Condition: TypeAlias = "int | float | str"


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One file of `experiments/`."""

    name: str
    chapter: str
    question: str
    rows: tuple[str, ...]
    """The claims that it judges, by the rows of docs/claims.md."""
    seconds: float
    """How long it takes on two cores."""
    needs: tuple[Need, ...]
    text: str
    """The file's docstring: the claims in their authors' sense, and what is done."""
    path: Path
    conditions: Mapping[str, Condition]
    """What may be changed from outside, with the defaults."""
    function: Callable[..., None]
    choices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """The only values of a condition, where it is annotated as a `Literal`."""

    def conditions_with(self, changes: Mapping[str, str]) -> dict[str, Condition]:
        """Return the conditions with some of them changed.

        Args:
            changes: by name, as text; it gets the type of the default.

        Raises:
            ConfigurationError: there is no such condition, or the text is no such value.
        """
        found = dict(self.conditions)
        for name, text in changes.items():
            if name not in found:
                known = ", ".join(f"{key}={value}" for key, value in found.items()) or "none"
                raise ConfigurationError(
                    f"{self.name} has no condition {name}; its conditions are: {known}"
                )
            default = found[name]
            if isinstance(default, str):
                choices = self.choices.get(name)
                if choices and text not in choices:
                    raise ConfigurationError(
                        f"{self.name}: {name} must be one of {', '.join(choices)}, not {text!r}"
                    )
                found[name] = text
                continue
            wanted = "a whole number" if isinstance(default, int) else "a number"
            if default >= 0:
                wanted += " and not negative"
            try:
                value = type(default)(text)
            except ValueError:
                value = math.nan
            if not math.isfinite(value) or value < 0 <= default:
                raise ConfigurationError(
                    f"{self.name}: {name} must be {wanted}, such as {default}, not {text!r}"
                )
            found[name] = value
        return found


def experiment(
    *, question: str, rows: tuple[str, ...], seconds: float, needs: tuple[Need, ...] = ()
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a function the experiment of its file.

    The function takes a `Lab`, and its conditions as keyword-only arguments with defaults.

    Args:
        question: what it answers, as a reader would ask it.
        rows: the claims that it judges, by the rows of docs/claims.md, such as `("4.22",)`.
        seconds: how long it takes on two cores.
        needs: what it cannot do without.
    """
    unknown = set(needs) - set(get_args(Need))
    if unknown:
        raise ConfigurationError(f"unknown needs of an experiment: {', '.join(sorted(unknown))}")

    def mark(function: Callable[..., None]) -> Callable[..., None]:
        function.poolkit_experiment = {  # type: ignore[attr-defined]
            "question": question,
            "rows": rows,
            "seconds": seconds,
            "needs": needs,
        }
        return function

    return mark


def experiments_folder() -> Path:
    """Return the folder of the experiments that came with poolkit.

    A checkout has it beside the package, an installed wheel inside.
    """
    package = Path(poolkit.__file__).parent
    inside = package / "experiments"
    return inside if inside.is_dir() else package.parent / "experiments"


def find_experiments(folder: Path | None = None) -> dict[str, Experiment]:
    """Return the experiments of a folder by name, in the order of their chapters and files.

    Args:
        folder: with a sub-folder for each chapter; by default the one that came with poolkit.

    Raises:
        ConfigurationError: there is no such folder, or a file in it has no experiment.
    """
    folder = folder or experiments_folder()
    if not folder.is_dir():
        raise ConfigurationError(f"{folder}: there is no folder of experiments")
    found: dict[str, Experiment] = {}
    for path in sorted(folder.glob("*/*.py")):
        if path.name.startswith("_"):
            continue
        made = _load(path)
        if made.name in found:
            raise ConfigurationError(f"{path} and {found[made.name].path} have the same name")
        found[made.name] = made
    return found


def choose(found: Mapping[str, Experiment], name: str) -> Experiment:
    """Return an experiment by its name.

    Raises:
        ConfigurationError: there is none; the message has the nearest name.
    """
    if name in found:
        return found[name]
    near = difflib.get_close_matches(name.replace("-", "_"), found, 1, 0.5)
    hint = f"did you mean {near[0]}?" if near else "`poolkit experiment list` shows them all"
    raise ConfigurationError(f"there is no experiment {name}; {hint}")


def _load(path: Path) -> Experiment:
    name = f"poolkit_experiments.{path.parent.name}.{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None  # noqa: S101  (of a .py file there is one)
    assert spec.loader is not None  # noqa: S101
    module: ModuleType = importlib.util.module_from_spec(spec)
    # Where multiprocessing and dataclasses look for it.
    sys.modules[name] = module
    spec.loader.exec_module(module)
    marked = [
        function
        for function in vars(module).values()
        if inspect.isfunction(function) and hasattr(function, "poolkit_experiment")
    ]
    if len(marked) != 1:
        raise ConfigurationError(f"{path} has {len(marked)} functions with @experiment, not one")
    (function,) = marked
    facts: dict[str, Any] = function.poolkit_experiment
    parameters = [
        parameter
        for parameter in inspect.signature(function).parameters.values()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    ]
    return Experiment(
        name=path.stem,
        chapter=path.parent.name,
        text=inspect.getdoc(module) or "",
        path=path,
        conditions={
            # `rtt_ms: float = 62` takes 62.4 as well: the annotation has the type, not the default.
            each.name: float(each.default) if each.annotation in (float, "float") else each.default
            for each in parameters
        },
        choices={
            each.name: get_args(each.annotation)
            for each in parameters
            if get_origin(each.annotation) is Literal
        },
        function=function,
        **facts,
    )
