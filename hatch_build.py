"""Adds the default model to the wheel, if the environment names its folder (`make dist` does)."""

import os
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

VARIABLE = "VICINAGE_WHEEL_MODEL"
INSIDE = "ingest/embedding/default_model"


class CustomBuildHook(BuildHookInterface):  # type: ignore[type-arg]
    """Adds the folder to a wheel; an editable installation does not have it."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Adds the folder that VARIABLE names. Raises FileNotFoundError if it has no model."""
        folder = os.environ.get(VARIABLE)
        if folder and version == "standard" and self.target_name == "wheel":
            found = Path(self.root, folder)
            if not (found / "modules.json").is_file():
                raise FileNotFoundError(f"{VARIABLE}: there is no model in {found}")
            build_data["force_include"][str(found)] = INSIDE
