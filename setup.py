"""Packaging of lowrank_jax: what it needs, what it ships, and the extras its tests need."""

from setuptools import find_packages, setup

# Lower bounds are versions that were run together (Python 3.11 with jax 0.10, Python 3.12 with jax 0.11).
REQUIRES = [
    "jax>=0.10.2",
    "flax>=0.12.8,<0.13",
    "optax>=0.2.8",
    "orbax-checkpoint>=0.12.8,<0.13",
    "numpy>=2",
    "absl-py",
    "ml-collections>=1.1",
    "tensorflow-datasets>=4.9.10",
    "importlib_resources",  # tensorflow-datasets imports it and forgets to ask for it
    "array_record>=0.8.6",
    "grain>=0.2.18",
    "wandb>=0.31,<0.32",
    "safetensors>=0.8",
    "tokenizers>=0.23",
    "huggingface_hub",
    "scikit-learn>=1.6",
    "scipy>=1.13",
    "gguf>=0.17",
    "matplotlib",
    "tqdm",
]

# The PyTorch originals that tests compare with, on the CPU; the package itself imports none of them.
PARITY_REQUIRES = [
    "torch==2.13.0",
    "transformers>=5",
    "peft>=0.21",
    "loralib",
]

TEST_REQUIRES = [
    "pytest",
    "pytest-xdist",
    "pytest-timeout",
    "qwix>=0.1.8",  # whose codes of quantised kernels ours are compared with
    "sentencepiece",  # only for checkpoints whose tokenizer is a sentencepiece model alone
    *PARITY_REQUIRES,
]

setup(
    name="lowrank_jax",
    version="0.1.0",
    description="LoRA and MoRA reproduced in JAX/Flax, table by table",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["lowrank_jax", "lowrank_jax.*"]),
    package_data={"lowrank_jax.assets": ["*/*"]},
    install_requires=REQUIRES,
    extras_require={
        "parity": PARITY_REQUIRES,
        "test": TEST_REQUIRES,
        "gpu": ["jax[cuda13]"],
        "tpu": ["jax[tpu]"],
    },
)
