"""Libraries that are imported when a test first asks them for something: collection alone would take 7 s for them."""

import importlib


class Late:
    """The library `name`, imported by the first look at one of its attributes; torch then has one thread."""

    def __init__(self, name: str):
        self._name = name

    def __getattr__(self, attribute):
        if attribute.startswith(("_", "pytest")):  # what pytest asks each name of a module at collection
            raise AttributeError(attribute)
        library = importlib.import_module(self._name)
        if self._name == "torch" and library.get_num_threads() > 1:
            library.set_num_threads(1)
        return getattr(library, attribute)


torch, transformers, peft = Late("torch"), Late("transformers"), Late("peft")
