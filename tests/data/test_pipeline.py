"""Order, shards, resume and padding of the batch stream."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xmodal_jax.data.open import DataOptions, open_source
from xmodal_jax.data.pipeline import Loader, iterate_epoch, numeric_fields
from xmodal_jax.data.sources.arrays import ArraySource


def numbers(n):
    caption = np.empty(n, object)
    caption[:] = [str(i) for i in range(n)]
    return ArraySource({"image": np.arange(n, dtype=np.uint8).reshape(n, 1, 1, 1), "caption": caption})


def take(loader, k):
    batches = [next(loader) for _ in range(k)]
    return np.stack([b["image"][:, 0, 0, 0] for b in batches]), np.stack([b["index"] for b in batches])


@given(n=st.integers(1, 29), batch_size=st.integers(1, 13), seed=st.integers(0, 2**64 - 1))
def test_every_epoch_holds_each_example_once(n, batch_size, seed):
    loader = Loader(numbers(n), batch_size=batch_size, seed=seed, workers=0)
    steps = -(-3 * n // batch_size)
    images, index = take(loader, steps)
    for e in range(3):
        np.testing.assert_array_equal(np.sort(images.ravel()[e * n : (e + 1) * n]), np.arange(n))
    np.testing.assert_array_equal(index.ravel(), np.arange(steps * batch_size))
    np.testing.assert_array_equal(loader.index_batches(0, steps), images)


@given(n=st.integers(1, 60), batch_size=st.integers(1, 30), seed=st.integers(0, 2**64 - 1))
def test_no_batch_holds_an_example_twice(n, batch_size, seed):
    loader = Loader(numbers(n), batch_size=min(batch_size, n), seed=seed, workers=0)
    images, _ = take(loader, 60)
    assert all(len(set(batch.tolist())) == len(batch) for batch in images)
    whole_epochs = images.ravel()[: images.size // n * n].reshape(-1, n)
    np.testing.assert_array_equal(np.sort(whole_epochs), [np.arange(n)] * len(whole_epochs))


def test_only_a_batch_with_an_example_twice_changes():
    """All others are those of the permutations by Philox."""
    n, batch_size, epochs = 101, 8, 40
    draws = [np.random.Philox(key=np.array([7, e], np.uint64)).random_raw(n) for e in range(epochs)]
    plain = np.concatenate([np.argsort(d, kind="stable") for d in draws])
    plain = plain[: plain.size // batch_size * batch_size].reshape(-1, batch_size)
    images, _ = take(Loader(numbers(n), batch_size=batch_size, seed=7, workers=0), len(plain))
    twice = np.array([len(set(batch.tolist())) < batch_size for batch in plain])
    assert 0 < twice.sum() < epochs
    changed = (images != plain).any(axis=1)
    assert changed[twice].all() and (images != plain).sum() == 2 * (images[twice] != plain[twice]).sum()


def test_epochs_and_seeds_differ_but_repeat():
    orders = [take(Loader(numbers(31), batch_size=31, seed=s, workers=2), 3)[0] for s in (0, 1, 0)]
    np.testing.assert_array_equal(orders[0], orders[2])
    flat = [tuple(row) for order in orders[:2] for row in order]
    assert len(set(flat)) == 6  # also epoch 1 of seed 0 against epoch 0 of seed 1
    np.testing.assert_array_equal(
        take(Loader(numbers(5), batch_size=5, seed=0, shuffle=False), 2)[0], [range(5)] * 2
    )


@given(hosts=st.sampled_from([1, 2, 3, 4, 6, 12]), drop=st.booleans(), n=st.integers(12, 40))
def test_shards_joined_are_the_global_batch(hosts, drop, n):
    options = dict(batch_size=12, seed=3, num_epochs=2, drop_remainder=drop, workers=0)
    whole = list(Loader(numbers(n), **options))
    parts = [list(Loader(numbers(n), shard=(h, hosts), **options)) for h in range(hosts)]
    assert len(whole) == (2 * n) // 12 + (not drop and 2 * n % 12 > 0)
    for step, batch in enumerate(whole):
        for field in ("image", "index", *(() if drop else ("valid",))):
            np.testing.assert_array_equal(np.concatenate([p[step][field] for p in parts]), batch[field])


@pytest.mark.parametrize("stop", [0, 1, 4, 7])
@pytest.mark.parametrize("workers", [0, 2])
def test_restore_continues_exactly(stop, workers):
    options = dict(batch_size=7, seed=5, workers=workers)
    expected = take(Loader(numbers(17), **options), 9)
    first = Loader(numbers(17), **options)
    if stop:
        take(first, stop)
    position = json.loads(json.dumps(first.position()))
    second = Loader(numbers(17), **options)
    take(second, 2)
    second.restore(position)
    assert second.step == stop
    for got, want in zip(take(second, 9 - stop), expected, strict=True):
        np.testing.assert_array_equal(got, want[stop:])


def test_a_copy_is_the_stream_of_its_seed_and_shard_and_an_example_is_the_same_on_every_host():
    loader = Loader(numbers(23), batch_size=6, seed=3)
    other = Loader(numbers(23), batch_size=6, seed=4, shard=(1, 3))
    copy = loader.copy(seed=4, shard=(1, 3))
    for a, b in zip(take(copy, 5), take(other, 5), strict=True):
        np.testing.assert_array_equal(a, b)
    first = Loader(numbers(23), batch_size=6, seed=4).fetch(0)
    for each in (other, Loader(numbers(23), batch_size=6, seed=4)):
        example = each.example()
        assert len(example["index"]) == 1
        np.testing.assert_array_equal(example["image"], first["image"][:1])


def test_restoring_another_stream_is_refused():
    position = Loader(numbers(17), batch_size=4, seed=5).position()
    with pytest.raises(ValueError, match="batch_size was 4, is 5"):
        Loader(numbers(17), batch_size=5, seed=5).restore(position)
    with pytest.raises(ValueError, match="examples was 17, is 18; seed was 5, is 6"):
        Loader(numbers(18), batch_size=4, seed=6).restore(position)


def test_evaluation_pads_the_last_batch():
    source = ArraySource({
        "image": np.arange(7, dtype=np.uint8).reshape(7, 1, 1, 1), "text": np.ones((7, 2), np.int32),
        "present": {"image": np.arange(7) != 1, "text": np.ones(7, bool)},
    })  # fmt: skip
    batches = list(iterate_epoch(source, 3))
    assert [b["valid"].tolist() for b in batches] == [[True] * 3, [True] * 3, [True, False, False]]
    assert batches[2]["image"][:, 0, 0, 0].tolist() == [6, 6, 6]
    assert {m: v.tolist() for m, v in batches[2]["present"].items()} == dict.fromkeys(
        ("text", "image"), [True, False, False]
    )
    assert batches[0]["present"]["image"].tolist() == [True, False, True]
    assert batches[2]["index"].tolist() == [6, 7, 8]
    assert [b.keys() for b in batches] == [batches[0].keys()] * 3


def test_padded_index_batches_and_end_of_stream():
    loader = Loader(numbers(7), batch_size=3, seed=0, num_epochs=1, drop_remainder=False)
    images = np.stack([b["image"][:, 0, 0, 0] for b in loader])
    np.testing.assert_array_equal(loader.index_batches(0, 3), images)
    with pytest.raises(IndexError, match="3 steps"):
        loader.index_batches(1, 3)
    with pytest.raises(StopIteration):
        next(loader)


def test_transform_errors_and_device_batch():
    loader = Loader(numbers(5), batch_size=2, seed=0, transform=lambda b: {**b, "double": b["index"] * 2})
    batch = next(loader)
    assert batch["double"].tolist() == [0, 2] and set(numeric_fields(batch)) == {"image", "index", "double"}
    assert loader.wait_seconds > 0
    loader.close()

    def fail(batch):
        raise RuntimeError("in the transform")

    with pytest.raises(RuntimeError, match="in the transform"):
        next(Loader(numbers(5), batch_size=2, seed=0, transform=fail))


def test_mistakes():
    with pytest.raises(ValueError, match="exceeds the 3 examples"):
        Loader(numbers(3), batch_size=4, seed=0, num_epochs=1)
    with pytest.raises(ValueError, match="multiple of the 3 hosts"):
        Loader(numbers(3), batch_size=4, seed=0, shard=(0, 3))
    with pytest.raises(ValueError, match="shard"):
        Loader(numbers(3), batch_size=4, seed=0, shard=(2, 2))
    for spec in ("imagenet", "tfds:", "http://x"):
        with pytest.raises(
            ValueError, match="use shapes, tfds:NAME, folder:PATH, .*spoken:FILE, poly:SPEC or stacked:SPEC"
        ):
            open_source(spec)
    with pytest.raises(ValueError, match="prompt must contain"):
        DataOptions(prompt="a photo")
    with pytest.raises(ValueError, match="image_size must be positive"):
        DataOptions(image_size=0)


def test_open_source_reads_npz(tmp_path):
    np.savez(tmp_path / "a.npz", image=np.zeros((30, 4, 4), np.uint8))
    assert open_source(f"npz:{tmp_path}/a.npz", "all").modalities == ("image",)
    with pytest.raises(ValueError, match="'image' is 4 x 4 pixels, image_size asks for 8"):
        open_source(f"npz:{tmp_path}/a.npz", "all", DataOptions(image_size=8))


def test_open_source_passes_the_options_to_shapes():
    options = DataOptions(train_size=5, image_size=16, modalities=("text", "image"))
    source = open_source("shapes", "test", options)
    batch = source.batch(np.arange(5))
    assert len(source) == 5 and batch["image"].shape == (5, 16, 16, 3) and "audio" not in batch
    with pytest.raises(ValueError, match="16000 Hz"):
        open_source("shapes", "test", DataOptions(sample_rate=8000))
