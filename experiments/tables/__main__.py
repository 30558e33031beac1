"""The program `python -m experiments.tables NAME`."""

from absl import app

from experiments.tables.mora_table2 import define_flags, main

if __name__ == "__main__":
    define_flags()
    app.run(main)
