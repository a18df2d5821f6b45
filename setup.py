"""Package layout that pyproject.toml cannot express; all metadata is in pyproject.toml."""

from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py


class BuildWithPth(build_py):
    """Put `verl_prism_cpu.pth` into site-packages, in a wheel and in an editable install."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            target = self.get_finalized_command("install").install_lib
        else:
            target = self.build_lib
        Path(target).mkdir(parents=True, exist_ok=True)
        self.copy_file("verl_prism/cpu/verl_prism_cpu.pth", target)


setup(
    packages=[
        *find_packages(include=["verl_prism", "verl_prism.*"]),
        "verl_prism.trainer_configs",
        "verl_prism.examples.digits",
    ],
    package_dir={
        "verl_prism.trainer_configs": "trainer_configs",
        "verl_prism.examples.digits": "examples/digits",
    },
    package_data={
        "verl_prism": ["py.typed"],
        "verl_prism.checkpoints": ["*.jinja"],
        "verl_prism.examples.digits": ["*.sh"],
        "verl_prism.prepare": ["*.jinja"],
        "verl_prism.report.page": ["*.jinja", "*.js", "*.css"],
        "verl_prism.prepare.convert": ["*.txt"],
        "verl_prism.prepare.distill": ["*.txt"],
        "verl_prism.trainer_configs": ["*.yaml", "*/*.yaml"],
    },
    cmdclass={"build_py": BuildWithPth},
)
