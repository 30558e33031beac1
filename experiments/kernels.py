"""The program `python -m experiments.kernels`: where a traced step's time goes (`experiments.bench.kernels`)."""

from experiments.bench.kernels import main
from experiments.cli import launch

if __name__ == "__main__":
    launch(main)
