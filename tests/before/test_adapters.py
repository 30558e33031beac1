"""Adapter folders of an earlier commit, ours and PEFT's: they load, and compute what they did."""

from pathlib import Path

import numpy as np
import pytest

EXPECTED = np.load(Path(__file__).parent / "logits.npz")


@pytest.fixture(scope="module")
def folder(unpacked):
    """A toy Llama, ours/ and peft/."""
    return unpacked("adapters")


@pytest.mark.parametrize("name", [name for name in EXPECTED.files if name != "tokens"])
def test_an_adapter_computes_what_it_did(name, folder, doors):
    found, expected = doors.logits(folder / "llama", folder / name, EXPECTED["tokens"]), EXPECTED[name]
    assert found.shape == expected.shape
    apart = np.abs(found - expected).max() / np.abs(expected).max()
    assert apart <= 1e-6, f"{name}: logits are {apart:.1e} of the largest away from those of the commit that wrote it"


def test_they_differ():
    """Another adapter gives other logits, far beyond the tolerance."""
    ours = [EXPECTED[name] for name in EXPECTED.files if name.startswith("ours/")]
    assert len(ours) == 5
    for number, one in enumerate(ours):
        assert all(np.abs(one - other).max() > 1e-2 * np.abs(one).max() for other in ours[:number])
