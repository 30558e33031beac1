"""Batches: exact resume, shares that make up the whole, epochs, read-ahead, buckets and bad input."""

import json
import subprocess
import sys
import threading

import grain
import numpy as np
import pytest

from lowrank_jax.core.errors import UserError
from lowrank_jax.data.pipeline import Batches, bucketed_pass, one_pass

SOURCE = list(range(10))


def features(example):
    return {"x": np.array([example, example * 100], np.int32), "y": np.float32(example)}


def make(source=SOURCE, batch_size=4, **kwargs):
    return Batches(source, features, batch_size, **kwargs)


def take(batches, count):
    return [next(batches)["x"][:, 0].tolist() for _ in range(count)]


def test_batches_are_stacked_features():
    batch = next(make(shuffle=False))
    np.testing.assert_array_equal(batch["x"], [[0, 0], [1, 100], [2, 200], [3, 300]])
    assert batch["x"].dtype == np.int32
    assert batch["y"].dtype == np.float32
    assert batch["y"].shape == (4,)


def test_order_is_grains_own():
    stream = grain.MapDataset.source(SOURCE).seed(3).shuffle().repeat().map(features).batch(4)
    ours = make(seed=3)
    for number in range(12):
        for name, value in stream[number].items():
            np.testing.assert_array_equal(value, ours.batch(number)[name])


def test_each_epoch_holds_every_example_once_in_a_new_order():
    stream = np.concatenate(take(make(seed=1), 15)).reshape(6, 10)
    assert all(sorted(epoch) == SOURCE for epoch in stream.tolist())
    assert len({tuple(epoch) for epoch in stream.tolist()}) == 6


def test_seeds_give_different_orders_and_the_same_seed_the_same():
    assert take(make(seed=1), 10) == take(make(seed=1), 10) != take(make(seed=2), 10)


def test_without_shuffle_the_order_is_the_sources():
    assert take(make(shuffle=False), 5) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 0, 1], [2, 3, 4, 5], [6, 7, 8, 9]]


def test_a_source_smaller_than_a_batch_repeats():
    (batch,) = take(make(source=[0, 1, 2], batch_size=8, seed=0), 1)
    assert sorted(batch[:3]) == sorted(batch[3:6]) == [0, 1, 2]
    assert len(set(batch[6:])) == 2


@pytest.mark.parametrize("prefetch", [0, 2])
def test_finite_epochs_end_and_leave_out_the_incomplete_batch(prefetch):
    batches = make(epochs=2, batch_size=6, shuffle=False, prefetch=prefetch)
    assert [b["x"][:, 0].tolist() for b in batches] == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 0, 1], [2, 3, 4, 5, 6, 7]]
    with pytest.raises(StopIteration):
        next(batches)


@pytest.mark.parametrize("processes", [2, 4])
@pytest.mark.parametrize("shuffle", [True, False])
def test_shares_in_process_order_are_the_global_batch(processes, shuffle):
    whole = make(seed=5, shuffle=shuffle, batch_size=8)
    shares = [
        make(seed=5, shuffle=shuffle, batch_size=8, process_index=p, process_count=processes) for p in range(processes)
    ]
    for _ in range(7):
        expected = next(whole)
        parts = [next(s) for s in shares]
        for name in expected:
            np.testing.assert_array_equal(np.concatenate([p[name] for p in parts]), expected[name])


@pytest.mark.parametrize("prefetch", [0, 1, 3])
def test_resume_is_exact_and_counts_what_was_handed_out(prefetch):
    first = make(seed=2, prefetch=prefetch)
    take(first, 7)
    state = json.loads(json.dumps(first.get_state()))
    assert state["batches"] == 7
    rest = take(first, 9)
    resumed = make(seed=2, prefetch=prefetch)
    take(resumed, 3)  # what was read before is dropped
    resumed.set_state(state)
    assert resumed.get_state() == state
    assert take(resumed, 9) == rest
    first.set_state(state)
    assert take(first, 9) == rest


PROGRAM = """
import json, sys
import numpy as np
from lowrank_jax.data.pipeline import Batches
batches = Batches(list(range(10)), lambda e: {"x": np.int32(e)}, 4, seed=2, process_index=1, process_count=2)
batches.set_state(json.loads(sys.argv[1]))
print(json.dumps([next(batches)["x"].tolist() for _ in range(6)]))
"""


def test_resume_in_another_process_and_with_another_process_count():
    batches = make(seed=2)
    take(batches, 5)
    out = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(batches.get_state())], check=True, capture_output=True, text=True
    ).stdout
    assert json.loads(out) == [batch[2:] for batch in take(batches, 6)]


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"seed": 3}, "seed"),
        ({"batch_size": 5}, "batch_size"),
        ({"source": [1] * 9}, "examples"),
        ({"shuffle": False}, "shuffle"),
    ],
)
def test_a_cursor_of_another_stream_is_refused(change, name):
    state = make(seed=2).get_state()
    with pytest.raises(UserError, match=f"saved with {name}="):
        make(**{"seed": 2, **change}).set_state(state)


def test_bulk_read_is_used_where_the_source_has_it():
    class Bulk:
        calls = 0

        def __len__(self):
            return 10

        def __getitem__(self, index):
            raise AssertionError("read one by one")

        def __getitems__(self, indices):
            assert all(type(i) is int for i in indices)
            self.calls += 1
            return [SOURCE[i] for i in indices]

    source = Bulk()
    batches = make(source=source, shuffle=False, prefetch=0)
    assert take(batches, 2) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert source.calls == 2


def test_reads_ahead_on_another_thread_but_no_further_than_asked():
    seen = []

    def slow(example):
        seen.append((example, threading.current_thread() is threading.main_thread()))
        return {"x": np.int32(example)}

    batches = Batches(list(range(100)), slow, 2, shuffle=False, prefetch=3)
    next(batches)
    batches.close()
    assert not any(main for _, main in seen)
    assert {e for e, _ in seen} <= set(range(8))


@pytest.mark.parametrize("prefetch", [0, 2])
def test_a_fault_in_an_example_reaches_the_caller_at_its_batch(prefetch):
    def faulty(example):
        if example == 9:
            raise UserError("row 9 is bad")
        return {"x": np.int32(example)}

    batches = Batches(SOURCE, faulty, 4, shuffle=False, prefetch=prefetch)
    next(batches), next(batches)
    for _ in range(2):
        with pytest.raises(UserError, match="row 9 is bad"):
            next(batches)
    assert batches.get_state()["batches"] == 2


def test_one_pass_gives_each_example_once_and_fills_with_zeros():
    shares = [
        list(one_pass(SOURCE, lambda e: {"w": np.ones(2), "x": np.int32(e)}, 4, process_index=p, process_count=2))
        for p in (0, 1)
    ]
    assert [[b["x"].tolist() for b in share] for share in shares] == [
        [[0, 1], [4, 5], [8, 9]],
        [[2, 3], [6, 7], [0, 0]],
    ]
    assert shares[1][2]["w"].sum() == 0
    assert shares[0][2]["w"].sum() == 4


@pytest.mark.parametrize("batch_size", [0, -2, 5])
def test_a_batch_that_does_not_divide_is_refused(batch_size):
    with pytest.raises(UserError, match=f"batch_size={batch_size} does not divide over 2"):
        make(batch_size=batch_size, process_count=2)


def test_an_empty_source_and_epochs_without_a_batch_are_refused():
    with pytest.raises(UserError, match="data set is empty"):
        make(source=[])
    with pytest.raises(UserError, match=r"1 epoch.* of 10 examples fill no batch of 16"):
        make(batch_size=16, epochs=1)


def test_missing_grain_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "grain", None)
    with pytest.raises(UserError, match=r"needs grain .*pip install"):
        make()


LENGTHS = np.array([1, 4, 2, 8, 3, 4, 5, 1, 2, 7])
ROWS = [np.arange(1, n + 1, dtype=np.int32) for n in LENGTHS]
BUCKETS = {"lengths": LENGTHS, "buckets": (2, 4, 8), "pad": {"tokens": -1, "types": 0}}


def ragged(row):
    return {"tokens": row, "types": row // 2, "labels": np.float32(len(row)), "weights": np.float32(1)}


def bucketed(**kwargs):
    return Batches(ROWS, ragged, **{"batch_size": 2, "seed": 3, **BUCKETS, **kwargs})


def check_rows(batch):
    """Each row is the one its label names, padded, with a mask of its true length."""
    for tokens, types, mask, label in zip(*(batch[n] for n in ("tokens", "types", "mask", "labels")), strict=True):
        n = int(label)
        assert tokens.tolist() == [*range(1, n + 1)] + [-1] * (len(tokens) - n)
        assert types.tolist() == [i // 2 for i in range(1, n + 1)] + [0] * (len(tokens) - n)
        assert mask.tolist() == [True] * n + [False] * (len(tokens) - n)


def test_a_batch_is_padded_to_the_smallest_bucket_that_holds_its_longest_row():
    batches = bucketed()
    seen = set()
    for number in range(15):
        batch = next(batches)
        check_rows(batch)
        longest = int(batch["labels"].max())
        assert batch["tokens"].shape == batch["mask"].shape == (2, min(b for b in (2, 4, 8) if b >= longest))
        assert batches.length(number) == batch["tokens"].shape[1]
        assert {n: v.dtype for n, v in batch.items()} == {
            **dict.fromkeys(("tokens", "types"), np.int32),
            **dict.fromkeys(("labels", "weights"), np.float32),
            "mask": bool,
        }
        seen.add(batch["tokens"].shape[1])
    assert seen == {2, 4, 8}


def test_the_bucket_is_that_of_the_global_batch():
    whole = bucketed(batch_size=4)
    shares = [bucketed(batch_size=4, process_index=p, process_count=4) for p in range(4)]
    for number in range(10):
        expected = next(whole)
        parts = [next(share) for share in shares]
        assert {share.length(number) for share in shares} == {whole.length(number)}
        for name in expected:
            np.testing.assert_array_equal(np.concatenate([p[name] for p in parts]), expected[name])


def test_buckets_leave_order_and_cursor_alone():
    plain = Batches(LENGTHS, lambda n: {"labels": np.float32(n)}, 2, seed=3)
    padded = bucketed()
    for _ in range(12):
        np.testing.assert_array_equal(next(plain)["labels"], next(padded)["labels"])
    assert plain.get_state() == padded.get_state()


def test_a_batch_can_be_padded_further():
    batches = bucketed()
    number = next(n for n in range(50) if batches.length(n) == 2)
    longer = batches.batch(number, 8)
    assert longer["tokens"].shape == (2, 8)
    check_rows(longer)
    for name, value in batches.batch(number).items():
        np.testing.assert_array_equal(longer[name][:, :2] if value.ndim == 2 else longer[name], value)
    number = next(n for n in range(50) if batches.length(n) == 8)
    with pytest.raises(ValueError, match="for a length of 4"):
        batches.batch(number, 4)


def test_length_ends_with_the_epochs_and_needs_buckets():
    batches = bucketed(epochs=1)
    assert [batches.length(n) for n in range(5)] == [b["tokens"].shape[1] for b in batches]
    with pytest.raises(IndexError, match="batch 5 of 5"):
        batches.length(5)
    with pytest.raises(ValueError, match="without buckets"):
        make().length(0)


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_a_bucketed_pass_gives_each_example_once_with_its_index(processes):
    shares = [
        list(bucketed_pass(ROWS, ragged, 4, **BUCKETS, process_index=p, process_count=processes))
        for p in range(processes)
    ]
    seen, shapes = [], []
    for parts in zip(*shares, strict=True):
        indices = parts[0][0]
        assert all((other == indices).all() for other, _ in parts)
        batch = {name: np.concatenate([b[name] for _, b in parts]) for name in parts[0][1]}
        present = indices >= 0
        check_rows({name: value[present] for name, value in batch.items()})
        np.testing.assert_array_equal(batch["labels"][present], LENGTHS[indices[present]])
        np.testing.assert_array_equal(batch["weights"], present)
        for name, value in {"tokens": -1, "types": 0, "labels": 0}.items():
            assert (batch[name][~present] == value).all()
        assert batch["mask"].any(axis=1).all()  # softmax needs a key
        assert (batch["mask"][~present].sum(axis=1) == 1).all()
        seen += indices[present].tolist()
        shapes.append(batch["tokens"].shape)
    assert sorted(seen) == list(range(10))
    assert shapes == [(4, 2), (4, 8), (4, 8)]  # lengths 1 1 2 2, 3 4 4 5, 7 8


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"buckets": (2, 4)}, UserError, "a row has 8 tokens, the last bucket 4; add a bucket"),
        ({"buckets": (4, 2, 8)}, UserError, "are not ascending"),
        ({"buckets": (8, 8)}, UserError, "are not ascending"),
        ({"lengths": LENGTHS[:9]}, ValueError, "the length of each of 10 rows"),
        ({"lengths": None}, ValueError, "the length of each of 10 rows"),
        ({"pad": {}}, ValueError, "and what is padded"),
    ],
)
def test_buckets_that_do_not_fit(change, error, message):
    with pytest.raises(error, match=message):
        bucketed(**change)


def test_lengths_that_are_wrong_are_noticed():
    batches = bucketed(lengths=np.ones(10, int), shuffle=False)
    with pytest.raises(ValueError, match="rows of 4 along axis 0"):
        batches.batch(0)


def test_bucketed_batches_read_their_own_rows_alone():
    class Counting(list):
        reads = 0

        def __getitem__(self, index):
            self.reads += 1
            return super().__getitem__(index)

    rows = [np.arange(n, dtype=np.int32) for n in np.random.RandomState(0).randint(4, 60, 5000)]
    lengths = np.array([len(row) for row in rows])
    source = Counting(rows)
    batches = Batches(source, ragged, 32, **{**BUCKETS, "lengths": lengths, "buckets": (32, 64)}, prefetch=0)
    for number in range(201):
        batches.batch(number)
    assert source.reads == 201 * 32
