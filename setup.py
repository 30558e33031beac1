"""Packaging of lowrank_jax: what it needs, what it ships, and the extras for tests, checks and devices."""

from pathlib import Path

from setuptools import find_packages, setup

# Lower bounds are versions that were run together (Python 3.11 with jax 0.10, Python 3.12 with jax 0.11). jax has an
# upper one: each of its minor versions moves names that this code and its type checks read, and 0.12 was not gone over.
REQUIRES = [
    "jax>=0.10.2,<0.12",
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
    "jaxtyping>=0.3",
    "wandb>=0.31,<0.32",
    "safetensors>=0.8",
    "tokenizers>=0.23",
    "huggingface_hub",
    "scikit-learn>=1.6",
    "scipy>=1.13",
    "gguf>=0.17",
    "matplotlib",
    "tqdm",
    "jinja2>=3.1.6",  # chat templates; earlier versions have known escapes from the sandbox
]

# The PyTorch originals that tests compare with, on the CPU; the package itself imports none of them.
PARITY_REQUIRES = [
    "torch==2.13.0",
    "transformers>=5",
    "peft>=0.21",
    "loralib",
]

# Metrics of generated text; METEOR, ROUGE-L and CIDEr also need Java.
NLG_REQUIRES = [
    "sacrebleu>=2.6",
    "pycocoevalcap>=1.2",
    "pyter3>=0.3",
    "rouge-score>=0.1.2",
    "nltk>=3.9",
]

# Evaluation by lm-eval's tasks, and answers to mathematical questions.
EVAL_REQUIRES = [
    "lm_eval>=0.4.13,<0.5",
    "math-verify[antlr4_13_2]>=0.9",
    "datasets",
]

TEST_REQUIRES = [
    "pytest",
    "pytest-xdist",
    "pytest-timeout",
    "hypothesis>=6.150",  # chooses, repeats and shrinks the mutations of tests/fuzz
    "beartype",  # checks shapes at run time, under jaxtyping's import hook
    "qwix>=0.1.8",  # whose codes of quantised kernels ours are compared with
    "pyarrow",  # reads and writes Parquet files
    "sentencepiece",  # only for checkpoints whose tokenizer is a sentencepiece model alone
    *NLG_REQUIRES,
    *EVAL_REQUIRES,
    *PARITY_REQUIRES,
]

# Formatting differs between minor versions of ruff, and what is found between those of basedpyright.
DEV_REQUIRES = [
    "ruff>=0.17.6,<0.18",
    "basedpyright>=1.40.2,<1.41",
]

setup(
    name="lowrank_jax",
    version="0.1.0",
    description="LoRA and MoRA reproduced in JAX/Flax, table by table",
    long_description=Path("README.md").read_text(encoding="utf-8"),  # setuptools runs this file in its own folder
    long_description_content_type="text/markdown",
    author="The lowrank_jax authors",
    license="Apache-2.0",
    license_files=["LICENSE", "NOTICE"],
    keywords=["LoRA", "MoRA", "parameter-efficient fine-tuning", "PEFT", "JAX", "Flax", "language models"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    python_requires=">=3.11",
    packages=find_packages(include=["lowrank_jax", "lowrank_jax.*"]),
    package_data={"lowrank_jax.assets": ["*/*"]},
    install_requires=REQUIRES,
    extras_require={
        "parquet": ["pyarrow"],
        "data": ["pyarrow", "datasets"],
        "nlg": NLG_REQUIRES,
        "eval": EVAL_REQUIRES,
        "gcs": ["gcsfs"],  # roots of sweeps
        "s3": ["s3fs"],
        "parity": PARITY_REQUIRES,
        "test": TEST_REQUIRES,
        "dev": DEV_REQUIRES,
        "gpu": ["jax[cuda13]"],
        "tpu": ["jax[tpu]"],
    },
)
