"""Headers of safetensors files that somebody else wrote: whatever the reference implementation refuses is refused here,
with the array's name; what it reads is read alike."""

import json
import os
import struct

import numpy as np
import pytest
import safetensors
from safetensors.numpy import load_file, save_file

from xmodal_jax.core.paths import leaves_folder
from xmodal_jax.pretrained.files import open_checkpoint
from xmodal_jax.pretrained.safetensors_files import read_header

DATA = bytes(range(32))


def write(path, header, data=DATA):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def array(start, stop, shape=None, dtype="U8"):
    return {
        "dtype": dtype,
        "shape": [stop - start] if shape is None else shape,
        "data_offsets": [start, stop],
    }


@pytest.mark.parametrize(
    "header, message",
    [
        ({"x": array(-8, 24)}, "'x' has data_offsets .*-8, 24.*whole numbers from 0"),
        ({"x": array(0, 32), "y": array(-16, -8)}, "'y' has data_offsets"),
        ({"x": array(0, 20), "y": array(12, 32)}, "'y' has data_offsets .12, 32. and overlaps"),
        ({"x": array(0, 32), "y": array(0, 32)}, "'y' has data_offsets .0, 32. and overlaps"),
        ({"x": array(0, 8), "y": array(16, 32)}, "'y' has data_offsets .16, 32. and leaves a gap"),
        ({"x": array(8, 32)}, "'x' has data_offsets .8, 32. and leaves a gap"),
        ({"x": array(0, 40)}, "32.*cut short|speaks of"),
        ({"x": array(0, 24)}, "is damaged"),
        ({"x": array(24, 0, [0])}, "'x' has data_offsets .24, 0."),
        ({"x": array(0, 32, [3])}, "'x' of U8 .3. takes 3 bytes"),
        ({"x": array(0, 32, [-4, -8])}, "'x' has shape .-4, -8."),
        ({"x": array(0, 32, [32.0])}, "'x' has shape .32.0."),
        ({"x": array(0, 32, [True, 32])}, "'x' has shape .True, 32."),
        ({"x": array(0, 32, "8")}, "'x' has shape 8"),
        ({"x": array(0, 32), "y": array(32, 32, [0, 2**62])}, "'y' has shape"),
        ({"x": array(0, 32, [[32]])}, "'x' has shape"),
        ({"x": array(0, 32, dtype=["U8"])}, "'x' has dtype .*can be read"),
        ({"x": {**array(0, 32), "data_offsets": [0, 32.0]}}, "'x' has data_offsets"),
        ({"x": {**array(0, 32), "data_offsets": [0]}}, "'x' has no dtype, shape and data_offsets"),
        ({"x": [1, 2]}, "'x' has no dtype"),
        ({"x": array(0, 32), "__metadata__": {"format": 1}}, "'__metadata__' is not"),
        ({"x": array(0, 32), "__metadata__": "pt"}, "'__metadata__' is not"),
        ([1, 2], "not a JSON object"),
        (b"[" * 100_000, "not JSON"),
        (b'{"x": ' + b"9" * 5000 + b"}", "not JSON"),
        (b'{"x": "\xff"}', "not JSON"),
        (json.dumps({"x": array(0, 32)}).encode()[:-1] + b', "x": {}}', "the field 'x' is there twice"),
    ],
)
def test_wrong_headers_are_refused(tmp_path, header, message):
    path = write(tmp_path / "model.safetensors", header)
    with pytest.raises(ValueError, match=message) as error:
        read_header(path)
    assert str(path) in str(error.value)
    if "'y' has shape" not in message:  # the reference takes it, and NumPy then has no such array
        with pytest.raises(safetensors.SafetensorError):
            load_file(path)


def test_right_headers_are_read_as_the_reference_does(tmp_path):
    path = tmp_path / "model.safetensors"
    rng = np.random.default_rng(0)
    arrays = {f"a{k}": rng.integers(0, 9, rng.integers(0, 4, k % 4)).astype(np.int16) for k in range(12)}
    save_file(arrays, path, metadata={"format": "pt"})
    found = read_header(path)
    assert set(found) == set(arrays)
    for name, expected in load_file(path).items():
        np.testing.assert_array_equal(found[name].read(), expected)
    assert read_header(write(path, {}, b"")) == {}


def test_what_is_no_ordinary_file_is_refused(tmp_path):
    """A pipe without a writer would be waited for, for ever."""
    os.mkfifo(tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    for path in (tmp_path / "model.safetensors", tmp_path):
        with pytest.raises(ValueError, match=f"{path} is not an ordinary file"):
            read_header(path)
    with pytest.raises(ValueError, match=r"model.safetensors is not an ordinary file"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "name", ["../model.safetensors", "/model.safetensors", r"a\..\..\model.safetensors", "C:\\x"]
)
def test_an_index_names_files_in_its_folder_only(tmp_path, name):
    (tmp_path / "inside").mkdir()
    write(tmp_path / "model.safetensors", {"x": array(0, 32)})
    index = tmp_path / "inside" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"x": name}}))
    (tmp_path / "inside" / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="index.json: 'weight_map' names .*outside of its folder"):
        open_checkpoint(tmp_path / "inside")


@pytest.mark.parametrize(
    "text, message",
    [
        ('{"weight_map": ["a"]}', "does not give a file name"),
        ('{"weight_map": {"x": 3}}', "does not give a file name"),
        ('{"weight_map": {"x": "a.safetensors", "x": "b.safetensors"}}', "the field 'x' is there twice"),
        ("[" * 100_000, "no 'weight_map'"),
        (json.dumps({"weight_map": {"x": "a" * 300}}), "lacks a"),
        ('{"weight_map": {"x": "a\\u0000"}}', "lacks a"),
    ],
)
def test_damaged_indexes_are_refused(tmp_path, text, message):
    (tmp_path / "model.safetensors.index.json").write_text(text)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        open_checkpoint(tmp_path)
    assert "index.json" in str(error.value)


def test_one_array_under_two_spellings_is_refused(tmp_path):
    zeros = np.zeros(3, np.float32)
    save_file({"LayerNorm.gamma": zeros, "LayerNorm.weight": zeros + 1}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="both 'LayerNorm.weight' by today's names"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "config, message", [('{"model_type": []}', "'model_type' is"), ("[" * 100_000, "not JSON")]
)
def test_damaged_configurations_are_refused(tmp_path, config, message):
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(ValueError, match=f"config.json.*{message}"):
        open_checkpoint(tmp_path)


def test_names_that_leave_their_folder():
    inside = ["a.png", "images/a.png", "./a.png", "a..b/..c", "a:b", "日本/ü.png", "", "..."]
    outside = ["..", "../a", "a/../../b", "a\\..\\b", "/etc/passwd", "\\\\host\\share", "C:\\a", "a/.."]
    assert [name for name in inside if leaves_folder(name)] == []
    assert [name for name in outside if not leaves_folder(name)] == []
