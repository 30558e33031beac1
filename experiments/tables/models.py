"""Checks --model of experiments.tables: each table's known bases, and the refusal of any other name."""

from collections.abc import Iterable
from typing import Any

from lowrank_jax.core.errors import UserError

# Experiment -> the models of its config: a copy, as nothing here imports configs. A test holds that both agree.
MODELS = {
    "mora_finetune": ("llama2-7b", "smollm2-135m", "gemma3-270m", "pico-llama"),
    "lora_glue": ("minilm-l6", "bert-base", "roberta-base", "roberta-large", "deberta-v2-xxlarge"),
    "lora_nlg": ("gpt2-medium", "gpt2-large", "gpt3-175b", "smollm2-135m", "gemma3-270m", "pico-llama"),
    "lora_mnli": ("pico-llama", "smollm2-135m", "gpt2-medium", "gpt2-large", "gpt3-175b"),
}
RATES = ("smollm2-135m", "gemma3-270m", "pico-llama")  # of configs/sweeps/rates_*.py, held by the same test
# Table -> the experiments whose runs it shows; `rates` finds its settings in any.
SHOWN = {
    "lora_table2": ("lora_glue",),
    **dict.fromkeys((f"lora_table{number}" for number in (3, 13, 14, 18)), ("lora_nlg",)),
    "lora_table4": ("lora_nlg", "lora_mnli"),
    "lora_table16": ("lora_mnli",),
    **dict.fromkeys((f"mora_table{number}" for number in (1, 4, 6, 7)), ("mora_finetune",)),
}


def check_model(table: str, model: str | None, results: Any) -> None:
    """Refuses a base that neither the table's configs nor its records name.

    Args:
      table: its name.
      model: of the command line; None: not given.
      results: what the table's module loads; of `rates` the first item has the records.

    Raises:
      UserError: lists the known ones.
    """
    if model is None:
        return
    known = list(dict.fromkeys((*_of_configs(table), *sorted(_of_records(table, results)))))
    if model not in known:
        raise UserError(f"--model={model}: no base of {table} has this name; known: {', '.join(known)}")


def _of_configs(table: str) -> Iterable[str]:
    if table == "rates":
        return RATES
    return [model for experiment in SHOWN[table] for model in MODELS[experiment]]


def _of_records(table: str, results: Any) -> set[str]:
    if table == "rates":
        from experiments.tables.rates.rows import settings

        return {setting.base for setting in settings(results[0])}
    of_table = (one for one in results if (one.get("config") or {}).get("experiment") in SHOWN[table])
    models = ((one.get("labels") or {}).get("model") for one in of_table)
    return {model for model in models if isinstance(model, str)}
