"""The digest of a trace: kinds of kernels, a step's share, and what is no trace of a GPU."""

import os

import pytest
from jax.profiler import ProfileData

from experiments.bench.training.kernels import STEPS, find, summarise
from lowrank_jax.core.errors import UserError


def trace(plane="/device:GPU:0", line="Stream #14(Compute)"):
    """Each step two products of 2 us, 1 us after one another, and a sum of 1 us."""
    names = {1: "nvjet_128x160_h", 2: "nvjet_256x96_h", 3: "loop_add_fusion_7"}
    events, at = [], 0
    for _ in range(STEPS):
        for number, nanoseconds in ((1, 2_000), (2, 2_000), (3, 1_000)):
            events.append(f"events {{ metadata_id: {number} offset_ps: {at}000 duration_ps: {nanoseconds}000 }}")
            at += nanoseconds + 1_000
    metadata = [f'event_metadata {{ key: {n} value {{ id: {n} name: "{name}" }} }}' for n, name in names.items()]
    return ProfileData.from_text_proto(
        f'planes {{ name: "{plane}" {" ".join(metadata)} lines {{ name: "{line}" {" ".join(events)} }} }}'
    )


def test_kinds_of_kernels_by_a_steps_share():
    found = summarise(trace(), top=30)
    assert found == {
        "span_ms": pytest.approx((3 * 8 - 1) / 3e3, abs=1e-3),
        "busy_ms": 0.005,
        "launches": 3,
        "kernels": [["nvjet#x#_h", 0.004, 2.0], ["loop_add_fusion#", 0.001, 1.0]],
    }
    assert [kind for kind, *_ in summarise(trace(), top=1)["kernels"]] == ["nvjet#x#_h"]


@pytest.mark.parametrize("where", [dict(plane="/host:CPU"), dict(line="XLA Ops")])
def test_other_traces_are_refused(where):
    with pytest.raises(UserError, match="no kernels of a GPU"):
        summarise(trace(**where), top=30)


def test_the_newest_of_a_folder(tmp_path):
    for name, age in (("new", 0), ("old", 100)):
        path = tmp_path / "plugins" / f"{name}.xplane.pb"
        path.parent.mkdir(exist_ok=True)
        path.touch()
        os.utime(path, (1e9 - age, 1e9 - age))
    assert find(str(tmp_path)).name == "new.xplane.pb"
    assert find(str(tmp_path / "plugins" / "old.xplane.pb")).name == "old.xplane.pb"
    for place in (None, str(tmp_path / "gone")):
        with pytest.raises(UserError, match=r"make one with experiments\.bench"):
            find(place)


def test_the_program_says_what_it_misses(program, tmp_path):
    ended = program("kernels", f"--profile={tmp_path}")
    assert ended.status == 2
    assert "no .xplane.pb" in ended.err
