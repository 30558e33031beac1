"""W&B's offline runs of all workers below a shared root, where one `wandb sync` finds them."""

from pathlib import Path

from experiments.records.store import Store

FOLDER = "wandb"  # below the root, and in a run's folder
PATTERN = "offline-run-*"


def put(store: Store, run_folder: str | Path) -> int:
    """Copies the offline runs of a run's folder below the root; returns how many there are.

    Raises:
      StoreError: the root cannot be reached.
    """
    found = sorted(Path(run_folder, FOLDER).glob(PATTERN))
    for offline in found:
        for file in sorted(path for path in offline.rglob("*") if path.is_file()):
            store.replace(f"{FOLDER}/{offline.name}/{file.relative_to(offline)}", file.read_bytes())
    return len(found)


def fetch(store: Store, target: str | Path) -> int:
    """Copies the offline runs below the root into a folder; returns how many there are.

    Raises:
      StoreError: the root cannot be reached.
    """
    names = [name for name in store.names(FOLDER) if name.startswith(f"{FOLDER}/")]
    for name in names:
        content, place = store.read(name), Path(target, name.removeprefix(f"{FOLDER}/"))
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content or b"")
    return len({name.split("/")[1] for name in names})
