"""Package metadata. The settings of the tools are in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent


def read_version() -> str:
    """Read ``__version__`` without importing the package."""
    text = (ROOT / "megatron_longpo" / "__init__.py").read_text(encoding="utf-8")
    return re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE)[1]


# Wheels on every machine, with or without a GPU.
REQUIRES = [
    # 0.16.1 is the newest Megatron-Core that Python 3.11 can install.
    'megatron-core==0.16.1; python_version < "3.12"',
    'megatron-core>=0.19,<0.20; python_version >= "3.12"',
    "torch>=2.6",
    "numpy>=1.26",
    "einops>=0.7",  # Megatron-Core makes its hierarchical groups with it, and does not ask for it
    "transformers>=5",
    "safetensors>=0.5",
    "sentencepiece>=0.2.3",
    "jinja2>=3.1",
    "httpx2>=2",  # what transformers' own hub client uses
    "matplotlib>=3.8",
    "pyarrow>=15",
    "psutil>=5.9",
    "tensorboard>=2.15",
    "tqdm>=4.66",
    "pyyaml>=6",
]

EXTRAS = {
    # Installed on the GPU machine itself, against its CUDA (see Dockerfile). NVIDIA's Apex is a source install and is used where
    # Megatron-Core finds it; the package of that name on PyPI is another project.
    "gpu": ["transformer-engine[pytorch]>=2.5", "flash-attn>=2.7"],
    "wandb": ["wandb>=0.17"],
    "hub": ["datasets>=3"],  # documents by the name of a data set
    # Reads the model that `make quickstart` trains: a GGUF file, for which transformers wants accelerate.
    "quickstart": ["accelerate>=1", "gguf>=0.10"],
    "docs": ["mkdocs>=1.6"],
    "eval": ["lm-eval[hf]>=0.4.13,<0.5"],  # short-context tasks and ROUGE of tools/evaluate.py
}
# Other implementations that the tests compare with, and the tools.
EXTRAS["dev"] = [
    *EXTRAS["quickstart"],
    *EXTRAS["hub"],
    "hypothesis>=6.100",
    "liger-kernel>=0.5",
    "mistral-common>=1.5",
    "mypy>=1.10",
    "nox>=2024.4",
    "peft>=0.17",
    "pytest>=8",
    "pytest-timeout>=2.3",
    "pytest-xdist>=3.6",
    "ruff>=0.17,<0.18",  # a minor version may change the formatting
    "trl>=1",
    "xllamacpp>=2026.1",  # a real OpenAI-compatible server, on the CPU
]

setup(
    name="megatron-longpo",
    version=read_version(),
    description="LongPO, long-context preference optimisation, on Megatron-Core",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=find_packages(include=["megatron_longpo", "megatron_longpo.*"]),
    package_data={"megatron_longpo": ["py.typed"]},
    install_requires=REQUIRES,
    extras_require=EXTRAS,
    classifiers=[
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
