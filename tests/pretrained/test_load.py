"""Reading checkpoints: whole, in shards, to other dtypes and devices; and what is said of those that do not fit."""

import json
import pathlib
import struct
import subprocess
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from safetensors.numpy import load_file, save_file

from xmodal_jax.core import trees
from xmodal_jax.pretrained import bert
from xmodal_jax.pretrained.encoder import EncoderOptions
from xmodal_jax.pretrained.files import find_folder, open_checkpoint
from xmodal_jax.pretrained.load import complete_config, load_encoder, make_module, parameter_shapes
from xmodal_jax.pretrained.rules import to_checkpoint
from xmodal_jax.pretrained.safetensors_files import write_safetensors

CONFIG = dict(
    model_type="bert",
    vocab_size=53,
    hidden_size=28,
    num_hidden_layers=3,
    num_attention_heads=7,
    intermediate_size=37,
    max_position_embeddings=23,
)
POOL = EncoderOptions(head="pool")
QUERY = "encoder.layer.1.attention.self.query.weight"


@pytest.fixture(scope="module")
def params():
    module = make_module("text", complete_config(CONFIG), POOL)
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), parameter_shapes(module))


@pytest.fixture
def folder(params, tmp_path):
    module = make_module("text", complete_config(CONFIG), POOL)
    write_safetensors(tmp_path / "model.safetensors", to_checkpoint(bert.rules(module), trees.flat(params)))
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return tmp_path


def load(folder, options=POOL, **how):
    return load_encoder(folder, "text", options, progress=False, **how)


def change(folder, **arrays):
    """Replaces arrays of the checkpoint (None: removes them)."""
    path = folder / "model.safetensors"
    whole = {**load_file(path), **arrays}
    save_file({name: array for name, array in whole.items() if array is not None}, path)


def test_what_is_written_is_read(folder, params):
    found = load(folder)
    jax.tree.map(np.testing.assert_array_equal, found.params, params)
    assert found.unused == ()
    theirs = load_file(folder / "model.safetensors")
    ours = trees.flat(found.params)
    # The layout by its definition: a kernel is [in, 3, heads, size] where theirs is [heads * size, in].
    kernel = ours["transformer/layers_1/attention/qkv/kernel"]
    np.testing.assert_array_equal(kernel[:, 0], theirs[QUERY].T.reshape(28, 7, 4))
    np.testing.assert_array_equal(
        ours["transformer/layers_1/attention/out/kernel"],
        theirs["encoder.layer.1.attention.output.dense.weight"].T.reshape(7, 4, 28),
    )


def test_scanned_layers_are_stacked(folder, params):
    scanned = trees.flat(load(folder, EncoderOptions(head="pool", scan_layers=True)).params)
    for name, leaf in trees.flat(params).items():
        if "layers_1/" in name:
            np.testing.assert_array_equal(scanned[name.replace("layers_1/", "layers/")][1], leaf)


def test_less_is_read_where_less_is_needed(folder):
    found = load(folder, EncoderOptions())
    assert "pooler" not in found.params
    assert found.unused == ("pooler.dense.bias", "pooler.dense.weight")


@pytest.mark.parametrize("prefix", ["bert.", ""])
def test_a_model_of_another_task_is_read_without_its_head(folder, params, prefix):
    arrays = {prefix + name: array for name, array in load_file(folder / "model.safetensors").items()}
    arrays["cls.predictions.bias"] = np.zeros(53, np.float32)
    save_file(arrays, folder / "model.safetensors")
    found = load(folder)
    jax.tree.map(np.testing.assert_array_equal, found.params, params)
    assert found.unused == ("cls.predictions.bias",)


def shard(folder):
    arrays = load_file(folder / "model.safetensors")
    names = sorted(arrays)
    parts = {f"model-0000{k + 1}-of-00003.safetensors": names[k::3] for k in range(3)}
    for file, part in parts.items():
        save_file({name: arrays[name] for name in part}, folder / file)
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()
    return list(parts)


def test_shards(folder, params):
    files = shard(folder)
    jax.tree.map(np.testing.assert_array_equal, load(folder).params, params)
    (folder / files[1]).rename(folder / "elsewhere")
    with pytest.raises(
        FileNotFoundError, match=f"lacks {files[1]}, which model.safetensors.index.json names"
    ):
        load(folder)
    (folder / files[0]).rename(folder / files[1])
    (folder / "elsewhere").rename(folder / files[0])
    with pytest.raises(ValueError, match=r"lacks '.*', which model.safetensors.index.json says is there"):
        load(folder)
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(ValueError, match="and no model.safetensors.index.json that says what is where"):
        load(folder)


@pytest.mark.parametrize("stored", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_any_floating_dtype_is_read_to_the_wanted_one(folder, params, stored):
    arrays = load_file(folder / "model.safetensors")
    change(folder, **{name: array.astype(stored) for name, array in arrays.items()})
    found = trees.flat(load(folder).params)
    for name, leaf in trees.flat(params).items():
        np.testing.assert_array_equal(found[name], leaf.astype(stored).astype(np.float32))
    half = load(folder, dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(half.params)} == {jnp.dtype(jnp.bfloat16)}


def test_parameters_are_read_to_where_they_are_wanted(folder, params):
    mesh = Mesh(np.array(jax.devices()), ("fsdp",))

    def place(name, shape):
        spec = PartitionSpec("fsdp") if name == "words/embedding" and shape[0] % 8 == 0 else PartitionSpec()
        return NamedSharding(mesh, spec)

    change(folder, **{"embeddings.word_embeddings.weight": np.ones((56, 28), np.float32)})
    (folder / "config.json").write_text(json.dumps({**CONFIG, "vocab_size": 56}))
    found = load(folder, sharding=place).params
    table = found["words"]["embedding"]
    assert {shard.data.shape for shard in table.addressable_shards} == {(7, 28)}
    np.testing.assert_array_equal(found["norm"]["scale"], params["norm"]["scale"])
    assert len(found["norm"]["scale"].addressable_shards) == 8


def test_missing_and_unknown_arrays_are_listed(folder):
    arrays = load_file(folder / "model.safetensors")
    change(folder, **{QUERY: None, "encoder.layer.1.attention.self.qeury.weight": arrays[QUERY]})
    said = rf"It lacks {QUERY}\. Nothing takes its encoder\.layer\.1\.attention\.self\.qeury\.weight\."
    with pytest.raises(ValueError, match=said):
        load(folder)


def test_a_deeper_checkpoint_is_refused(folder):
    (folder / "config.json").write_text(json.dumps({**CONFIG, "num_hidden_layers": 2}))
    with pytest.raises(ValueError, match=r"Nothing takes its encoder\.layer\.2\..* and 6 more"):
        load(folder)


def test_another_shape_is_refused(folder):
    change(folder, **{QUERY: np.zeros((28, 29), np.float32)})
    with pytest.raises(ValueError, match=rf"'{QUERY}' has shape \[28, 29\], by config.json it is \[28, 28\]"):
        load(folder)


def test_another_dtype_is_refused(folder):
    change(folder, **{QUERY: np.zeros((28, 28), np.int32)})
    with pytest.raises(ValueError, match=f"'{QUERY}' is I32, expected one of F64, F32, F16, BF16"):
        load(folder)


def test_a_truncated_file_is_refused(folder):
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(
        ValueError, match=rf"has {len(whole) - 100:,} bytes and its header speaks of .* cut short"
    ):
        load(folder)
    path.write_bytes(whole[:50])
    with pytest.raises(ValueError, match="no safetensors file, or cut short"):
        load(folder)
    path.write_bytes(whole + b"more")
    with pytest.raises(ValueError, match="damaged; fetch it again"):
        load(folder)


def test_a_damaged_header_is_refused(folder):
    path = folder / "model.safetensors"
    path.write_bytes(struct.pack("<Q", 8) + b"not JSON")
    with pytest.raises(ValueError, match="its header is not JSON"):
        load(folder)
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(ValueError, match="a pointer of Git LFS"):
        load(folder)
    for entry, said in (
        ({"dtype": "F8", "shape": [2], "data_offsets": [0, 8]}, "'x' has dtype F8; one of"),
        (
            {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]},
            r"'x' of F32 \[2\] takes 8 bytes, .* gives it 4",
        ),
        ({"shape": [2]}, "'x' has no dtype, shape and data_offsets"),
    ):
        header = json.dumps({"x": entry}).encode()
        path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
        with pytest.raises(ValueError, match=said):
            load(folder)


def test_a_pickle_is_never_read(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match="pytorch_model.bin is no safetensors file and is not read"):
        load(folder)


def test_what_is_no_checkpoint_is_said(folder, tmp_path_factory, monkeypatch):
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(FileNotFoundError, match="has no config.json"):
        load(empty)
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        load(empty / "nowhere")
    (empty / "config.json").write_text("{")
    with pytest.raises(ValueError, match="config.json is not JSON"):
        load(empty)
    (empty / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="has no 'model_type'"):
        load(empty)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match="neither a local folder nor a model that could be fetched"):
        find_folder("nobody/no-such-model")
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ValueError, match="pretrained encoders of image are .*; it is an encoder of text"):
        load_encoder(folder, "image", progress=False)


@pytest.mark.parametrize(
    "change, said",
    [
        ({"hidden_size": "28"}, "hidden_size"),
        ({"hidden_size": -28}, "'hidden_size' is -28, expected a whole number from 1 up"),
        ({"num_attention_heads": 5}, "'num_attention_heads' is 5, which does not divide 'hidden_size', 28"),
        ({"num_hidden_layers": 1.5}, "num_hidden_layers"),
        ({"hidden_act": 3}, "hidden_act"),
        ({"model_type": "berta"}, "'berta', which transformers does not know"),
    ],
)
def test_a_configuration_that_describes_no_encoder_is_refused(folder, change, said):
    (folder / "config.json").write_text(json.dumps({**CONFIG, **change}))
    with pytest.raises(ValueError, match=rf"config.json.*{said}"):
        load(folder)


def test_an_interrupted_write_leaves_what_was_there(tmp_path):
    path = tmp_path / "model.safetensors"
    write_safetensors(path, [("x", np.ones(3, np.float32))])

    def broken():
        yield "x", np.zeros(3, np.float32)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_safetensors(path, broken())
    np.testing.assert_array_equal(load_file(path)["x"], np.ones(3))
    assert [p.name for p in pathlib.Path(tmp_path).iterdir()] == ["model.safetensors"]


def test_sizes_are_known_before_anything_is_read(folder):
    checkpoint = open_checkpoint(folder)
    assert checkpoint.size == sum(a.nbytes for a in load_file(folder / "model.safetensors").values())


@pytest.mark.slow  # writes and reads a gigabyte: 25 seconds
def test_a_gigabyte_is_read_with_little_more_memory():
    command = [sys.executable, "-m", "benchmarks.loading"]
    root = pathlib.Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["dtype"] for row in told] == ["float32", "bfloat16"]
    assert all(row["size"] > 9e8 and row["peak"] < 1.3 for row in told), told
    assert told[0]["peak"] > 1.0 > told[1]["peak"]  # what is kept is as large as what was read, or half of it
    assert "reading" in done.stderr and "100%" in done.stderr
