"""Programs that stand in for experiments.run and experiments.trials, and experiments.run with a signal on its way."""

# The flags of experiments.sweep as nobody sets them, but for --config, --grid and --workdir.
SWEEP = dict(
    results=None, only=None, cell=None, set=[], together="1", dry_run=False, preview=False, wandb_sweep=None, root=None,
    lease_seconds=60.0, retry_failed=False,
)  # fmt: skip

# experiments.run, without the figure, whose library takes half a second to import. After step 4, once the path `saved`
# is there, it sends itself the signal, if `where` is among its words. argv: signal, where, saved, word, ...
SIGNALLED_RUN = """
import os, signal, sys, time
sign, where, saved, *words = sys.argv[1:]
from experiments.session.together import cluster
cluster.quieten(words)
sys.argv = ["run", *words]
from experiments import run
from experiments.cli import launch
from experiments.tables import figures
from lowrank_jax.train.meter import Meter
push = Meter.push

def pushed(self, step, metrics):
    if step == 4 and where in words:
        while not os.path.exists(saved):
            time.sleep(0.01)
        os.kill(os.getpid(), getattr(signal, sign))
    push(self, step, metrics)

Meter.push = pushed
figures.draw_run = lambda result, path: path
launch(run.main)
"""

# Writes what experiments.run would; how each run ends is read from behave.json ({part of the name: ending}).
FAKE_RUN = """
import json, os, sys, time
flags = dict(word[2:].split("=", 1) for word in sys.argv[1:])
work, name = flags["workdir"], flags["name"]
with open(f"{work}/ran.txt", "a") as log:
    log.write(name + "\\n")
if "WANDB_SWEEP_ID" in os.environ:
    with open(f"{work}/agent.txt", "a") as log:
        log.write(name + "\\n")
behave = json.load(open(f"{work}/behave.json")) if os.path.exists(f"{work}/behave.json") else {}
ending = next((how for part, how in behave.items() if part in name), "finished")
folder = f"{work}/{name}"
os.makedirs(folder, exist_ok=True)
rate = float(flags["config.optimizer.learning_rate"])
if ending.startswith("sleep"):
    time.sleep(float(ending.split()[1]))
    ending = "finished"
if ending == "fail":
    sys.exit(3)
if ending == "mistake":
    with open(os.environ["LOWRANK_JAX_FAULT_FILE"], "w") as out:
        json.dump(["base", "task"], out)
    sys.exit(2)
if ending in ("here", "machine"):
    with open(os.environ["LOWRANK_JAX_FAULT_FILE"], "w") as out:
        json.dump(ending, out)
    sys.exit(2)
if ending == "traceback":
    sys.exit(1)
if ending == "silent":
    sys.exit(0)
arg = flags["config"].partition(":")[2]
words = dict(part.split("=") for part in arg.split(",") if part)
words |= {"rank": int(words["rank"])} if "rank" in words else {}
best = 3e-4 if words.get("method") == "fft" else 1e-3
losses = [[step, abs(rate - best)] for step in range(1, 21)]
result = {"name": name, "status": ending, "labels": {**words, "stage": flags["config.labels.stage"]},
          "config": {"optimizer": {"learning_rate": rate}}, "losses": losses, "wall_seconds": 5.0}
with open(f"{folder}/result.json", "w") as out:
    json.dump(result, out)
"""

# Writes what experiments.trials would: a result for every cell of its file.
FAKE_TRIALS = """
import json, os, sys
flags = dict(word[2:].split("=", 1) for word in sys.argv[1:])
work, cells = flags["workdir"], json.load(open(flags["cells"]))
with open(f"{work}/groups.txt", "a") as log:
    log.write(" ".join(cell["name"] for cell in cells) + "\\n")
behave = json.load(open(f"{work}/behave.json")) if os.path.exists(f"{work}/behave.json") else {}
if len(cells) > behave.get("room", len(cells)):
    with open(os.environ["LOWRANK_JAX_FAULT_FILE"], "w") as out:
        json.dump("here", out)
    sys.exit(2)
if "shared" in behave or "machine" in behave:
    with open(os.environ["LOWRANK_JAX_FAULT_FILE"], "w") as out:
        json.dump(["base"] if "shared" in behave else "machine", out)
    sys.exit(2)
if any(name in cell["name"] for name in behave.get("wrong", []) for cell in cells):
    sys.exit(2)
for cell in cells:
    if "x" in behave:
        sys.exit(3)
    os.makedirs(f"{work}/{cell['name']}", exist_ok=True)
    rate = cell["config"]["optimizer"]["learning_rate"]
    result = {"name": cell["name"], "status": "finished", "labels": cell["config"]["labels"], "config": cell["config"],
              "losses": [[1, rate]], "wall_seconds": 5.0}
    json.dump(result, open(f"{work}/{cell['name']}/result.json", "w"))
"""
