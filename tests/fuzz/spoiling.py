"""Spoils a file by its kind, or puts something else in its place."""

import json
import os
import struct

from fuzz import mutations


def spoil(rng, file):
    """Mutates a file by its kind: JSON, JSON lines, safetensors' header, or bytes."""
    if rng.random() < 0.03:
        _replace(rng, file)
    elif file.suffix == ".json" and rng.random() < 0.9:
        mutations.write(file, mutations.text_of(rng, mutations.mutate(rng, json.loads(file.read_text()))))
    elif file.suffix == ".jsonl" and rng.random() < 0.9:
        lines = file.read_text().splitlines()
        place = rng.randrange(len(lines))
        lines[place] = mutations.text_of(rng, mutations.mutate(rng, json.loads(lines[place])))
        mutations.write(file, "\n".join(lines) + "\n")
    elif file.suffix == ".safetensors" and rng.random() < 0.7:
        content = file.read_bytes()
        size = struct.unpack("<Q", content[:8])[0]
        header = json.loads(content[8 : 8 + size])
        text = mutations.text_of(rng, mutations.mutate(rng, header)).encode("utf-8", errors="surrogatepass")
        file.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + size :])
    else:
        file.write_bytes(mutations.flip(rng, file.read_bytes()))


def _replace(rng, file):
    """A folder, a pipe, a link to nothing, or nothing, in the file's place."""
    file.unlink()
    kind = rng.randrange(4)
    if kind == 0:
        file.mkdir()
    elif kind == 1:
        os.mkfifo(file)
    elif kind == 2:
        file.symlink_to("nowhere")
