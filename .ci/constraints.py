"""Print constraints.txt: the versions, in this environment, of all that inrjax depends on.

    python .ci/constraints.py > constraints.txt

Dependencies of dependencies included, and those of the extras test and docs; nothing else that is
installed here. What is not installed is left out, as are packages for accelerators.
"""

from __future__ import annotations

import sys
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

EXTRAS = ("test", "docs")


def main() -> None:
    """One line a package, sorted."""
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text("utf-8")
    project = tomllib.loads(text)["project"]
    waiting = [*project["dependencies"]]
    for extra in EXTRAS:
        waiting += project["optional-dependencies"][extra]
    lines = [f"{name}=={version}" for name, version in sorted(pinned(waiting).items())]
    head = "# Made by .ci/constraints.py: see CONTRIBUTING.md."
    sys.stdout.write("\n".join([head, *lines, ""]))


def pinned(requirements: list[str]) -> dict[str, str]:
    """Name -> installed version of the requirements and of all that they require."""
    found: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    waiting = [(Requirement(text), "") for text in requirements]
    while waiting:
        requirement, extra = waiting.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        if name.startswith("nvidia-"):
            continue
        for wanted in ("", *requirement.extras):
            if (name, wanted) in seen:
                continue
            seen.add((name, wanted))
            try:
                package = distribution(name)
            except PackageNotFoundError:
                continue
            found[name] = package.version
            waiting += [(Requirement(text), wanted) for text in package.requires or ()]
    return found


if __name__ == "__main__":
    main()
