"""A wheel with the native kernels compiled: `TRIFORM_KERNELS=1 pip wheel .`; without it they are compiled at first use."""

import os
import runpy
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class CustomBuildHook(BuildHookInterface):
    """Compiles the library into the package and marks the wheel as one for this kind of machine; any Python 3 will do."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable" or os.environ.get("TRIFORM_KERNELS") != "1":
            return
        from packaging.tags import sys_tags

        kernels = Path(self.root) / "src" / "triform" / "kernels"
        made: Path = runpy.run_path(str(kernels / "build.py"))["build"](kernels)
        platform = next(tag.platform for tag in sys_tags() if "manylinux" not in tag.platform)
        build_data["pure_python"], build_data["tag"] = False, f"py3-none-{platform}"
        build_data["force_include"][str(made)] = f"triform/kernels/{made.name}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact: str) -> None:
        for made in (Path(self.root) / "src" / "triform" / "kernels").glob("triform_kernels.*"):
            made.unlink()
