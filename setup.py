"""Adds the experiments to the package; all else is in pyproject.toml."""

import shutil

from setuptools import setup
from setuptools.command.build_py import build_py


class WithExperiments(build_py):
    """Copies ``experiments/`` into the package. An installed ``ssd-effnet`` finds experiments there by name."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            files = shutil.ignore_patterns("*.md", "results")
            shutil.copytree("experiments", f"{self.build_lib}/ssd_effnet/experiments", ignore=files, dirs_exist_ok=True)


setup(cmdclass={"build_py": WithExperiments})
