"""Exports a finished run: the adapter alone, a folder for PEFT, and the merged model if asked for."""

import dataclasses
import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import jax

from experiments.session.experiment import Experiment
from experiments.session.weights import is_fresh
from lowrank_jax import adapters
from lowrank_jax.bases.base import Base, architecture_of, export_params
from lowrank_jax.bases.locate import KNOWN
from lowrank_jax.bases.peft import export_peft
from lowrank_jax.checkpoints.adapters_only import on_host, save_adapter
from lowrank_jax.core.errors import UserError
from lowrank_jax.core.files import kind_of, read_text
from lowrank_jax.core.paths import flatten, unflatten
from lowrank_jax.core.trees import combine
from lowrank_jax.interop.carried import carry
from lowrank_jax.interop.peft.config import CONFIG, PROMPT_METHODS, hf_modules
from lowrank_jax.layouts.segments import Segments
from lowrank_jax.ops.quantized import dense_tree
from lowrank_jax.text.chat_files import JINJA
from lowrank_jax.text.tokenizers import ByteTokenizer, reading_marks, tokenizer_files
from lowrank_jax.train.state import TrainState

# PEFT's class by the task of its config; without one, AutoPeftModel asks the config for transformers' class.
CLASSES = {
    "CAUSAL_LM": "AutoPeftModelForCausalLM",
    "SEQ_CLS": "AutoPeftModelForSequenceClassification",
    "FEATURE_EXTRACTION": "AutoPeftModelForFeatureExtraction",
    None: "AutoPeftModel",
}


INSTALL = "pip install -e '.[parity]'"  # of a clone, with PEFT, transformers and torch


@dataclasses.dataclass(frozen=True)
class ExportConfig:
    """What to write beside the records.

    Attributes:
      adapter: the trained leaves alone, with their scales and the base's fingerprint, in `adapter/`. Full fine-tuning
        has no adapter: it is kept by its checkpoint and by `merged`. Nor has a run with restarts, whose adapters since
        the last merge belong to a base that only it has.
      merged: dtype of the merged model in Hugging Face's layout in `model/`; "" writes none. Of a quantised base, what
        its codes stand for with the update, as arrays on the device; scripts/merge_adapter.py merges into the
        published weights instead, on the host.
      peft: the adapter as a folder for PEFT, in `peft/`, where PEFT has the family and can load the base by a name;
        otherwise a line says how else to use it in other programs.
      spectrum: counts the singular values above 0.1 of what the run has added to each kernel, into result.json (MoRA's
        Fig. 5); reads the base once more.
    """

    adapter: bool = True
    merged: Literal["", "float32", "bfloat16", "float16"] = ""
    peft: bool = True
    spectrum: bool = False


def export_run(folder: Path, experiment: Experiment, state: TrainState, frozen: Any, fingerprint: str) -> list[str]:
    """Writes what the run's config asks for; every process takes part, process 0 writes.

    Args:
      folder: the run's.
      experiment, state, frozen: the finished run.
      fingerprint: of the base.

    Returns:
      Lines for the user: the Python that loads `peft/`, or why there is none.
    """
    config, plan, lines = experiment.config.export, experiment.plan, []
    whole = experiment.config.trainable == "full" or bool(
        experiment.config.restart.every
    )  # no adapter holds all that was learned
    if whole and plan.sites and (config.adapter or config.peft):
        lines = [
            f"no {folder / 'adapter'}: merges (restart.every) have changed its base; the last checkpoint has the whole "
            "model, and --config.export.merged=float32 writes it"
        ]
    if config.adapter and not whole:
        variables = combine(state.trainable, frozen)
        scales = {path: jax.device_get(scale).tolist() for path, scale in flatten(variables.get("scales", {})).items()}
        save_adapter(
            folder / "adapter",
            _with_frozen_adapters(state, frozen),
            adapters.describe(plan),
            scales,
            experiment.base_record(fingerprint),
        )
    if config.peft and plan.sites and not whole:
        lines = _export_peft(folder, experiment, state, frozen, fingerprint)
    if config.merged:
        params = Segments().undo(adapters.merge(experiment.variables(state, frozen), plan))
        base = experiment.base
        beside = carry(base.path, base.tokenizer)
        export_params(params, base.config, folder / "model", config.merged, tokenizer=base.tokenizer, carried=beside)
        if whole:
            lines = [f"{folder / 'model'} is the whole model, for transformers and as a base here"]
    _write_template(folder, experiment)
    return lines


def _with_frozen_adapters(state: TrainState, frozen: Any) -> dict[str, Any]:
    """What was trained, and the adapters' leaves that rules froze (AsyLoRA's A): an update needs both."""
    held = frozen.get("adapters")
    return combine(state.trainable, {"adapters": held} if held else {})


def _write_template(folder: Path, experiment: Experiment) -> None:
    """Puts the chat template that the run's config names into each folder of the run that is taken home."""
    template = getattr(experiment.task, "template", None)
    if template is None or not experiment.config.task.chat_template or jax.process_index() != 0:
        return
    for place in (folder / name for name in ("adapter", "peft", "model")):
        if place.is_dir():
            (place / JINJA).write_text(template.source, encoding="utf-8")
            if kind_of(settings := place / "tokenizer_config.json") is not None:
                found = json.loads(read_text(settings))
                if (reading := reading_marks(found)) != found:
                    settings.write_text(json.dumps(reading, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _export_peft(folder: Path, experiment: Experiment, state: TrainState, frozen: Any, fingerprint: str) -> list[str]:
    """Writes `peft/`; returns the lines that load it, or that say why it is not there."""
    place, plan, base = folder / "peft", experiment.plan, experiment.base
    if jax.process_index() == 0:
        shutil.rmtree(place, ignore_errors=True)  # of an earlier end of this run
    if reason := _obstacle(experiment):
        return [_instead(folder, experiment, reason)]
    trained = {path: on_host(leaf) for path, leaf in flatten(state.trainable.get("params", {})).items()}
    fresh = [p for p in flatten(base.params) if experiment.form.head and is_fresh(experiment.config, p)]
    given = _params(experiment, state, frozen, trained, fresh)
    tree = {"adapters": jax.tree.map(on_host, _with_frozen_adapters(state, frozen)["adapters"])}
    tree["scales"] = jax.tree.map(on_host, frozen["scales"])
    if jax.process_index() != 0:
        return []
    base = dataclasses.replace(base, fingerprint=fingerprint, fresh=tuple(fresh))
    try:
        export_peft(place, plan, {"params": given, **tree}, base, list(_canonical(trained, flatten(given))))
    except UserError as error:
        return [_instead(folder, experiment, str(error))]
    if base.tokenizer is not None and (isinstance(base.tokenizer, ByteTokenizer) or _is_gguf(base)):
        for name, content in tokenizer_files(base.tokenizer).items():  # the base's files have none for transformers
            (place / name).write_bytes(content)
    return how_to_load(place, base, experiment.config.base.dtype)


def _params(experiment: Experiment, state: TrainState, frozen: Any, trained: dict, fresh: Iterable[str]) -> Any:
    """The params by their canonical paths: arrays where PEFT's folder needs values, shapes elsewhere.

    With a trained bias, PEFT's folder has its module's kernel too, and DoRA on a part of a fused module needs the norms
    of the other parts' kernels: then all params are arrays. Otherwise the base stays on the device as it is.
    """
    flat = dict(flatten(experiment.base.params))
    in_layers = any(path not in flat or path.startswith("layers/") for path in trained)
    dora = any(config.method == "dora" for config in experiment.plan.configs)
    if in_layers or (dora and _joins(experiment.base)):
        whole = dense_tree(Segments().undo(experiment.variables(state, frozen)["params"]))
        return jax.tree.map(on_host, whole)
    held = flatten(frozen.get("params", {}))
    return unflatten(flat | {path: on_host(held[path]) for path in fresh if path in held} | trained)


def _joins(base: Base) -> bool:
    """Whether the Hugging Face model has one module for several of ours, as GPT-2's c_attn."""
    rows = architecture_of(base.config).interop.hf_table(base.config)
    return any(len(module.parts) > 1 for module in hf_modules(rows, base.config.num_hidden_layers).values())


def _canonical(trained: Iterable[str], paths: Mapping[str, Any]) -> set[str]:
    """The params' own paths of trained leaves; a segment's leaf is part of the whole stack's."""
    return {path if path in paths else f"layers/{path.partition('/')[2]}" for path in trained}


def _obstacle(experiment: Experiment) -> str:
    """Why PEFT cannot load the run's adapter, whatever is written; "" where it can."""
    methods = [config.method for config in experiment.plan.configs]
    if experiment.base.path is None:
        return "its base is random, so PEFT has no name to load it by"
    return "PEFT has no mora" if "mora" in methods else ""


def _instead(folder: Path, experiment: Experiment, reason: str) -> str:
    """One line: why there is no peft/, and how else to use the adapter."""
    if any(not site.family.merges for site in experiment.plan.sites):
        return f"no {folder / 'peft'}: {reason}; {folder / 'adapter'} is loaded here (docs/checkpoints.md)"
    if experiment.base.path is None:
        return f"no {folder / 'peft'}: {reason}; --config.export.merged=float32 writes the whole model"
    merge = f"python scripts/merge_adapter.py --base {experiment.base.name} --adapter {folder / 'adapter'} --to FOLDER"
    return f"no {folder / 'peft'}: {reason}; as a model for transformers: {merge}"


def how_to_load(place: Path, base: Base, dtype: str) -> list[str]:
    """The lines of Python that load a PEFT folder in transformers, and a note where these give another base.

    Args:
      place: the folder.
      base: the run's.
      dtype: in which the run computed.
    """
    config = json.loads((place / CONFIG).read_text())
    head = f", num_labels={base.config.num_labels}" if config["task_type"] == "SEQ_CLS" else ""
    name, options = str(place.resolve()), f"dtype={dtype!r}{head}"
    if not _is_gguf(base) or base.name in KNOWN:
        auto = CLASSES[config["task_type"]]
        lines = [f"from peft import {auto}", f"model = {auto}.from_pretrained({name!r}, {options})"]
    else:  # PEFT gives transformers the base's name only, and GGUF needs the file's name too
        assert base.path is not None  # `_is_gguf`
        file = (base.path if base.path.suffix == ".gguf" else next(base.path.glob("*.gguf"))).resolve()
        lines = [
            "import peft, transformers",
            f"base = transformers.AutoModelForCausalLM.from_pretrained({str(file.parent)!r}, gguf_file={file.name!r}, "
            f"{options})",
            f"model = peft.PeftModel.from_pretrained(base, {name!r})",
        ]
    if config["peft_type"] not in PROMPT_METHODS:  # no weight computes virtual tokens
        lines.append("model = model.merge_and_unload()  # a plain transformers model, if that is wanted")
        merge = f"python scripts/merge_adapter.py --base {base.name} --adapter {place} --to FOLDER"
        lines.append(f"# without PEFT or the Hub: {merge}")
    said = [f"{place} loads in PEFT (the extra [parity]: {INSTALL}):", *(f"    {line}" for line in lines)]
    if base.name in KNOWN and _is_gguf(base):
        said.append(
            f"(PEFT loads {config['base_model_name_or_path']} from the Hub; the run's base was its quantised GGUF)"
        )
    return said


def _is_gguf(base: Base) -> bool:
    path = base.path
    return path is not None and (path.suffix == ".gguf" or (path.is_dir() and any(path.glob("*.gguf"))))
