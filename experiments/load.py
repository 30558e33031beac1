"""The program `python -m experiments.load`: time and memory of reading a base (`experiments.bench.load`)."""

from experiments.bench.load import main
from experiments.cli import launch

if __name__ == "__main__":
    launch(main)
