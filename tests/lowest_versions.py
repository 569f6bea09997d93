"""Print constraints under which pip installs the oldest version of each dependency that `pyproject.toml` allows."""

import tomllib

from layers import ROOT
from packaging.requirements import Requirement

EXTRA = "database"


def main() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for line in [*project["dependencies"], *project["optional-dependencies"][EXTRA]]:
        asked = Requirement(line)
        (bound,) = asked.specifier
        assert bound.operator == ">=", line
        print(f"{asked.name}=={bound.version}")


if __name__ == "__main__":
    main()
