"""Tar shards in WebDataset's layout: what is read, in which order, and what happens to bad samples and shards."""

import io
import json
import os
import tarfile
import threading

import numpy as np
import pytest
import soundfile
from PIL import Image
from scipy.stats import spearmanr

from xmodal_jax.data import tar_index
from xmodal_jax.data.bad_examples import BadExampleError, BadExamples
from xmodal_jax.data.metadata import choose_test
from xmodal_jax.data.open import open_source
from xmodal_jax.data.pipeline import Loader
from xmodal_jax.data.sources import tar
from xmodal_jax.data.sources.folder import FolderSource
from xmodal_jax.data.sources.tar import ShardReader, TarSource, TarTable, expand_braces, find_shards


def png(seed, size=7):
    image = np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(image).save(file, "png")
    return file.getvalue()


def wav(n):
    file = io.BytesIO()
    samples = np.random.default_rng(n).integers(-3000, 3000, n).astype(np.int16)
    soundfile.write(file, samples, 16000, subtype="PCM_16", format="WAV")
    return file.getvalue()


def write_tar(path, members, **options):
    """A tar file of ``(name or TarInfo, content)``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as file:
        for name, content in members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            content = content.encode() if isinstance(content, str) else content
            info.size = len(content) if info.isreg() else 0
            file.addfile(info, io.BytesIO(content))
    return path


def samples(count, start=0):
    """The members of samples with an image, a caption and a class."""
    return [
        (f"{i:04d}.{field}", content)
        for i in range(start, start + count)
        for field, content in (("png", png(i)), ("txt", f"picture {i}"), ("cls", str(i % 3)))
    ]


def open_tar(shards, split="all", **options):
    return TarSource(str(shards), split, progress=False, workers=2, **options)


def captions(source):
    return list(source.batch(np.arange(len(source)))["caption"])


@pytest.mark.parametrize("memory_limit", [1 << 30, 1])
def test_a_set_of_shards_equals_a_folder_of_the_same_examples(tmp_path, memory_limit):
    """Also where a sample lacks a modality, or its label is unknown."""
    rows = []
    for split, count in (("train", 9), ("test", 4)):
        members, lines = [], []
        for i in range(count):
            files = {"image": ("png", png(i)), "audio": ("wav", wav(900 + i))}
            if i == 2:
                del files["image"]
            if i == 3:
                del files["audio"]
            line = {f"{m}_file_name": None for m in ("image", "audio")}
            for modality, (suffix, content) in files.items():
                line[f"{modality}_file_name"] = f"{i}.{suffix}"
                (tmp_path / "folder" / split).mkdir(parents=True, exist_ok=True)
                (tmp_path / "folder" / split / f"{i}.{suffix}").write_bytes(content)
                members.append((f"{i}.{suffix}", content))
            line |= {"text": [f"{split} {i}", f"again {i}"], "label": None if i == 1 else "zab"[i % 3]}
            members.append((f"{i}.json", json.dumps({k: line[k] for k in ("text", "label")})))
            lines.append(json.dumps(line) + "\n")
        (tmp_path / "folder" / split / "metadata.jsonl").write_text("".join(lines))
        half = 2 * len(members) // 5
        half += next(k for k, (name, _) in enumerate(members[half:]) if name.endswith("json")) + 1
        write_tar(tmp_path / "tar" / f"{split}-000.tar", members[:half])
        write_tar(tmp_path / "tar" / f"{split}-001.tar", members[half:])
        rows.append(count)
    for split, count in zip(("train", "test"), rows, strict=True):
        folder = FolderSource(tmp_path / "folder", split, progress=False, memory_limit=memory_limit)
        shards = open_tar(tmp_path / "tar", split, memory_limit=memory_limit)
        assert shards.in_memory == (memory_limit > 1) and len(shards) == len(folder) == 2 * count
        assert (shards.modalities, shards.class_names) == (folder.modalities, folder.class_names)
        indices = np.random.default_rng(0).permutation(len(folder))
        one, other = folder.batch(indices), shards.batch(indices)
        assert one.keys() == other.keys()
        for name in one.keys() - {"present"}:
            np.testing.assert_array_equal(one[name], other[name])
        for name, present in one["present"].items():
            np.testing.assert_array_equal(present, other["present"][name])
        np.testing.assert_array_equal(folder.class_labels(), shards.class_labels())
        np.testing.assert_array_equal(folder.groups(), shards.groups())
        np.testing.assert_array_equal(
            folder.caption_batch(indices)["caption"], shards.caption_batch(indices)["caption"]
        )


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_names_of_all_forms_of_tar(tmp_path, form):
    """Long names, accents, folders with dots, links to nothing that is read, and the description of a shard."""
    deep = "/".join(["folder.of.dots" * 2] * 4)
    members = [("x/", b""), (f"{deep}/é1.PNG", png(0)), (f"{deep}/é1.txt", "one"), ("__index__/0.txt", "no")]
    members += [("../2.jpg", png(1)), ("../2.txt", "two"), ("LICENSE", "no"), ("x/._2.txt", b"\xff")]
    members[0] = (tarfile.TarInfo("x"), b"")
    members[0][0].type = tarfile.DIRTYPE
    path = write_tar(tmp_path / "a.tar", members, format=form, encoding="utf-8")
    table = TarTable(str(path), "all", BadExamples(), progress=False)
    assert [table.key(k) for k in range(len(table))] == [f"{deep}/é1", "../2"]
    assert [row.captions["text"] for row in table.read([0, 1], ["text"])] == [["one"], ["two"]]
    assert table.read([1], ["image"])[0].files == {"image": png(1)}
    with tarfile.open(path) as file:  # where the content is, as the standard library finds it
        offsets = {info.name: info.offset_data for info in file}
    index = tar_index.load_index(path, tar_index.FieldRoles({}))
    assert index.offsets[index.roles.index("image")].tolist() == [
        offsets[f"{deep}/é1.PNG"],
        offsets["../2.jpg"],
    ]


def test_an_index_is_made_once_and_made_anew_when_the_shard_changes(tmp_path, monkeypatch):
    path = write_tar(tmp_path / "a.tar", samples(3))
    build, built = tar.build_index, []
    monkeypatch.setattr(tar, "build_index", lambda shard, *rest: built.append(shard) or build(shard, *rest))
    for _ in range(2):
        assert captions(open_tar(path)) == ["picture 0", "picture 1", "picture 2"]
    assert built == [path] and (tmp_path / "a.tar.index.npz").is_file()
    write_tar(path, samples(3, start=5))  # of the same size
    os.utime(path, ns=(1, 1))
    assert captions(open_tar(path)) == ["picture 5", "picture 6", "picture 7"] and len(built) == 2
    (tmp_path / "a.tar.index.npz").write_bytes(b"PK\x03\x04 damaged")
    assert len(open_tar(path)) == 3 and len(built) == 3
    open_tar(path, columns={"text": "cls"})  # another index, beside the one that stays
    assert len(built) == 4 and len(list(tmp_path.glob("*.npz"))) == 2
    open_tar(path), open_tar(path, columns={"text": "cls"})
    assert len(built) == 4 and not list(tmp_path.glob(".*"))


def test_an_index_is_kept_in_the_cache_if_the_folder_cannot_be_written(tmp_path, monkeypatch):
    path = write_tar(tmp_path / "shards" / "a.tar", samples(2))
    make = tar_index.tempfile.mkstemp

    def mkstemp(dir, **options):
        if dir == path.parent:
            raise PermissionError(13, "read-only")
        return make(dir=dir, **options)

    monkeypatch.setattr(tar_index.tempfile, "mkstemp", mkstemp)
    monkeypatch.setenv("XMODAL_CACHE", str(tmp_path / "cache"))
    assert len(open_tar(path)) == 2
    assert (
        len(list((tmp_path / "cache").rglob("a.tar.index.npz"))) == 1
        and len(list(path.parent.iterdir())) == 1
    )
    monkeypatch.setattr(tar, "build_index", None)
    assert len(open_tar(path)) == 2
    monkeypatch.setattr(tar_index, "_FORMAT", 0)  # an index of another version does not count
    with pytest.raises(TypeError):
        open_tar(path)


def test_several_threads_and_processes_share_the_indexing(tmp_path):
    """Indexes that are made at the same time are whole, and the contents are right however many shards are open."""
    for k in range(70):
        write_tar(tmp_path / f"{k:02d}.tar", [(f"{k}.txt", f"caption {k}")])
    expected = [f"caption {k}" for k in range(70)]
    results = []
    threads = [
        threading.Thread(
            target=lambda: results.append(captions(open_tar(tmp_path, memory_limit=1, check_files=False)))
        )
        for _ in range(3)
    ]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert results == [expected] * 3


def test_a_bounded_number_of_shards_is_open(tmp_path, monkeypatch):
    monkeypatch.setattr(tar, "OPEN_SHARDS", 2)
    paths = [write_tar(tmp_path / f"{k}.tar", [("a.txt", str(k))]) for k in range(5)]
    reader = ShardReader(paths, [(p.stat().st_size, p.stat().st_mtime_ns) for p in paths])
    before = len(os.listdir("/proc/self/fd"))
    assert [reader.read(k, 512, 1) for k in (0, 1, 2, 3, 4, 0)] == [b"0", b"1", b"2", b"3", b"4", b"0"]
    assert len(os.listdir("/proc/self/fd")) == before + 2
    del reader
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_shard_that_changes_while_it_is_read_is_an_error_that_names_it(tmp_path):
    path = write_tar(tmp_path / "a.tar", samples(4))
    source = open_tar(path, memory_limit=1)
    with open(path, "ab") as file:
        file.write(bytes(512))
    with pytest.raises(
        OSError, match=r"the shard .*a\.tar has changed since its index was made \(20,480 bytes"
    ):
        source.batch(np.arange(2))
    os.truncate(path, 1000)
    with pytest.raises(OSError, match=r"20,480 bytes then, 1,000 now"):
        source.batch(np.arange(2))


def test_the_order_of_reading_is_a_global_shuffle(tmp_path):
    """The reading order says nothing about the shard: the rank correlation is that of independent orders."""
    for k in range(10):
        write_tar(tmp_path / f"{k}.tar", [(f"{i}.txt", str(i)) for i in range(100 * k, 100 * k + 100)])
    source = open_tar(tmp_path, memory_limit=1, check_files=False)
    loader = Loader(source, batch_size=50, seed=0, num_epochs=1)
    order = [int(caption) for batch in loader for caption in batch["caption"]]
    assert sorted(order) == list(range(1000))
    assert abs(spearmanr(np.arange(1000), np.array(order) // 100).statistic) < 0.1
    assert len({i // 100 for i in order[:50]}) == 10  # the first batch is of all shards


def test_a_restored_position_and_parts_of_hosts_give_the_same_batches(tmp_path):
    for k in range(3):
        write_tar(tmp_path / f"{k}.tar", samples(7, start=7 * k))

    def loader(**options):
        source = open_tar(tmp_path, memory_limit=1)
        return Loader(source, batch_size=4, seed=3, **options)

    whole = loader()
    batches = [next(whole) for _ in range(9)]
    resumed = loader()
    [next(resumed) for _ in range(4)]
    position = json.loads(json.dumps(resumed.position()))
    again = loader()
    again.restore(position)
    hosts = [loader(shard=(h, 2)) for h in range(2)]
    for step, batch in enumerate(batches):
        parts = [next(host) for host in hosts]
        for name in ("image", "caption", "label", "index"):
            np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), batch[name])
        if step >= 4:
            restored = next(again)
            for name in ("image", "caption", "label", "index"):
                np.testing.assert_array_equal(restored[name], batch[name])


def test_splits_by_name(tmp_path):
    names = "cc-train-0.tar cc-train-1.tar val_0.tar dev/0.tar evaluation.tar other.tar test/0.tar".split()
    for k, name in enumerate(names):
        write_tar(tmp_path / name, [(f"{k}.txt", name)])
    everything = "::".join(str(tmp_path / name) for name in names)
    split_of = lambda split: captions(open_tar(everything, split))
    assert split_of("train") == ["cc-train-0.tar", "cc-train-1.tar", "other.tar"]
    assert split_of("validation") == split_of("val") == ["val_0.tar", "dev/0.tar"]
    assert split_of("test") == ["evaluation.tar", "test/0.tar"]
    source = open_tar(everything, "train")
    assert (source.test_splits, source.validation_split) == (("test",), "validation")
    with pytest.raises(ValueError, match="has no split 'all'; .* say: test, train, validation"):
        split_of("all")
    (tmp_path / "x" / "training").mkdir(parents=True)
    (tmp_path / "x" / "val").mkdir()
    (tmp_path / "cc-train-0.tar").rename(tmp_path / "x" / "b.tar")
    (tmp_path / "other.tar").rename(tmp_path / "x" / "training" / "a.tar")
    (tmp_path / "val_0.tar").rename(tmp_path / "x" / "val" / "a.tar")
    assert captions(open_tar(tmp_path / "x", "train")) == ["cc-train-0.tar", "other.tar"]
    assert captions(open_tar(tmp_path / "x", "validation")) == ["val_0.tar"]
    source = open_tar(tmp_path / "x", "train")
    assert (source.test_splits, source.validation_split) == ((), "validation")


def test_splits_by_a_place_in_the_pattern(tmp_path):
    for name in ("train/a-0.tar", "train/a-1.tar", "voices/a-0.tar", "eval/a-0.tar"):
        write_tar(tmp_path / name, [("0.txt", name)])
    pattern = f"{tmp_path}/{{split}}/*-{{0..1}}.tar"
    assert captions(open_tar(pattern, "train")) == ["train/a-0.tar", "train/a-1.tar"]
    assert captions(open_tar(pattern, "voices")) == ["voices/a-0.tar"]
    assert captions(open_tar(f"{tmp_path}/{{split}}/*.tar", "test")) == ["eval/a-0.tar"]
    for name in ("both/test/test-0.tar", "both/test/train-0.tar", "both/voices/voices-0.tar"):
        write_tar(tmp_path / name, [("0.txt", name)])
    assert captions(open_tar(f"{tmp_path}/both/{{split}}/{{split}}-*.tar", "test")) == [
        "both/test/test-0.tar"
    ]


def test_without_splits_a_tenth_of_the_keys_is_the_test_split(tmp_path):
    for k in range(2):
        write_tar(tmp_path / f"train-{k}.tar", [(f"{i}.txt", str(i)) for i in range(100 * k, 100 * k + 100)])
    in_test = choose_test([str(i) for i in range(200)], tmp_path)
    bad_examples = BadExamples()
    test = open_tar(tmp_path, "test", bad_examples=bad_examples)
    assert captions(test) == [str(i) for i in np.flatnonzero(in_test)] and test.test_splits == ("test",)
    assert bad_examples.remarks == [
        f"tar:{tmp_path} has the split train alone: a tenth of it is the test split"
    ]
    assert captions(open_tar(tmp_path, "train")) == [str(i) for i in np.flatnonzero(~in_test)]
    assert len(open_tar(tmp_path)) == 200
    with pytest.raises(ValueError, match="has no split 'validation': .* must be train, test or all"):
        open_tar(tmp_path, "validation")
    few = write_tar(tmp_path / "few" / "a.tar", [(f"{i}.txt", str(i)) for i in range(3)])
    assert captions(open_tar(few, "test")) == [str(np.flatnonzero(choose_test(list("012"), few))[0])]
    one = write_tar(tmp_path / "one" / "a.tar", [("0.txt", "one")])
    with pytest.raises(ValueError, match="one example is not enough for a training and a test split"):
        open_tar(one, "train")


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("a{08..11}", ["a08", "a09", "a10", "a11"]),
        ("{1..3}{a,b}", ["1a", "1b", "2a", "2b", "3a", "3b"]),
        ("{3..1}", ["3", "2", "1"]),
        ("x{0..6..3}", ["x0", "x3", "x6"]),
        ("{a,b{1,2}}c", ["ac", "b1c", "b2c"]),
        ("{train,test}-{0..1}", ["train-0", "train-1", "test-0", "test-1"]),
        ("{split}-{0..1}", ["{split}-0", "{split}-1"]),
        ("a{b", ["a{b"]),
        ("{}a}", ["{}a}"]),
        ("{a,}b", ["ab", "b"]),
    ],
)
def test_braces(pattern, expected):
    assert expand_braces(pattern) == expected
    braceexpand = pytest.importorskip("braceexpand")
    if "{split}" not in pattern and pattern.count("{") == pattern.count("}"):
        assert list(braceexpand.braceexpand(pattern)) == expected


def test_what_names_no_shard_is_refused(tmp_path):
    write_tar(tmp_path / "0.tar", samples(1))
    for argument, message in {
        f"{tmp_path}/{{0..2}}.tar": r"there is no file .*1\.tar",
        f"{tmp_path}/*.tgz": "no file matches",
        f"{tmp_path}/{{split}}.tgz": "no file matches",
        "https://host/0.tar": "is no file on this machine: download",
        "pipe:cat 0.tar": "is no file on this machine",
        f"{tmp_path}/0.tar::{tmp_path}/*.tar": "names the shard .*0.tar twice",
        f"{tmp_path}/{{0..99999999}}.tar": "more than 1,000,000 numbers",
    }.items():
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            find_shards(argument)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="has no .tar files, nor have folders train/ and test/"):
        find_shards(str(tmp_path / "empty"))
    for name in ("empty/a.tar.gz", "empty/a.tgz"):
        with tarfile.open(tmp_path / name, "w:gz") as file:
            file.add(tmp_path / "0.tar", "0.png")
        with pytest.raises(ValueError, match=r"compressed \(t?gz\), .* decompress it \(such as gunzip\)"):
            find_shards(str(tmp_path / "empty"))
    (tmp_path / "empty" / "a.tgz").rename(tmp_path / "empty" / "a.tar")
    with pytest.raises(ValueError, match=r"a\.tar is compressed \(gzip\)"):
        open_tar(tmp_path / "empty" / "a.tar")


def test_columns(tmp_path):
    meta = json.dumps(
        {"alt": "alternative", "caption": "usual", "meta": {"es": ["uno", "dos"]}, "kind": "cat"}
    )
    members = [("0.left.png", png(0)), ("0.right.png", png(1)), ("0.txt", "text"), ("0.json", meta)]
    path = write_tar(tmp_path / "a.tar", members)
    with pytest.raises(
        ValueError,
        match=r"sample 1 of .*a\.tar: left.png and right.png are both its image: --columns image=left",
    ):
        open_tar(path)
    columns = {"image": "left.png", "image_2": "right.png", "text": "json.alt", "text_es": "json.meta.es"}
    bad_examples = BadExamples()
    source = open_tar(path, columns=columns | {"label": "json.kind"}, bad_examples=bad_examples)
    assert source.modalities == ("text", "text_es", "image", "image_2") and source.class_names == ("cat",)
    batch = source.batch(np.arange(2))
    assert list(batch["caption"]) == ["alternative"] * 2 and list(batch["caption_es"]) == ["uno", "dos"]
    for field, seed in (("image", 0), ("image_2", 1)):
        np.testing.assert_array_equal(batch[field][0], np.array(Image.open(io.BytesIO(png(seed)))))
    assert bad_examples.remarks == [
        f"tar:{path}: fields that are not read: json.caption, txt (--columns NAME=FIELD reads one)"
    ]
    with pytest.raises(ValueError, match=r"no sample has the field json\.nothing .--columns.; found .*image"):
        open_tar(path, columns=columns | {"label": "json.nothing"})
    for name, field in (("file_name", "x"), ("image", "json.url")):
        with pytest.raises(ValueError, match=f"{name}={field}: in tar shards files are members"):
            open_tar(path, columns={name: field})


def test_samples_of_one_group_show_one_picture_and_are_in_one_split(tmp_path):
    groups = [None if i == 5 else i % 30 for i in range(90)]
    members = [
        (f"{i}.{f}", c)
        for i, g in enumerate(groups)
        for f, c in (("txt", str(i)), ("json", json.dumps({"image_id": g})))
    ]
    path = write_tar(tmp_path / "a.tar", members)
    source = open_tar(path, columns={"group": "json.image_id"})
    numbers = source.groups()
    for i, j in ((0, 30), (0, 1), (5, 35), (35, 65), (4, 5)):
        assert (numbers[i] == numbers[j]) == (groups[i] == groups[j] is not None)
    in_test = choose_test([str(i) if g is None else str(g) for i, g in enumerate(groups)], path)
    test = open_tar(path, "test", columns={"group": "json.image_id"})
    assert captions(test) == [str(i) for i in np.flatnonzero(in_test)] and 0 < len(test) < 90


def test_a_member_of_its_own_comes_before_json(tmp_path):
    """A caption file and the JSON member that repeats it make one caption; a class by its common name is remarked."""
    members = [("0.txt", "own"), ("0.json", '{"caption": "other", "label": 1}'), ("0.cls", "0")]
    members += [
        ("1.json", '{"caption": ["a  b", "c"], "category": "x", "url": "y"}'),
        ("2.json", '{"text": "t"}'),
    ]
    path = write_tar(tmp_path / "a.tar", members[:2] + members[2:3])
    source = open_tar(path)
    assert captions(source) == ["own"] and source.class_labels().tolist() == [0]
    path, bad_examples = write_tar(tmp_path / "b.tar", members[3:]), BadExamples()
    source = open_tar(path, bad_examples=bad_examples)
    assert captions(source) == ["a b", "c", "t"] and source.class_labels().tolist() == [0, 0, -1]
    assert bad_examples.remarks == [
        f"tar:{path}: label from json.category (--columns NAME=FIELD chooses others)",
        f"tar:{path}: fields that are not read: json.url (--columns NAME=FIELD reads one)",
    ]


def test_class_names_beside_the_shards(tmp_path):
    for split, numbers in (("train", "0212"), ("test", "13")):
        members = [(f"{k}.{f}", c) for k, n in enumerate(numbers) for f, c in (("txt", n), ("cls", n))]
        write_tar(tmp_path / split / "0.tar", members)
    (tmp_path / "classes.txt").write_text("cat\ndog\nsnail\n")
    source = open_tar(tmp_path, "train")
    assert source.class_names == ("cat", "dog", "snail") and source.class_labels().tolist() == [0, 2, 1, 2]
    bad_examples = BadExamples("skip")
    assert captions(open_tar(tmp_path, "test", bad_examples=bad_examples)) == ["1"]
    assert [(item.line, item.reason) for item in bad_examples.items] == [
        (2, "the label 3 is not in 0..2 (is not in classes.txt)")
    ]


def special(name, kind, link=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def sample(key, **fields):
    """The members of a good sample, with other contents for ``fields``; None leaves a member out."""
    contents = {"png": png(0), "txt": f"caption {key}", "cls": "0"} | fields
    return [(f"{key}.{field}", content) for field, content in contents.items() if content is not None]


BAD_SAMPLES = {
    "a damaged image": (sample("b", png=png(1)[:50]), "the image cannot be decoded: "),
    "txt not UTF-8": (sample("b", txt=b"gr\xfcn"), r"the txt: .* byte 3 \(0xfc\) is not UTF-8"),
    "an empty caption": (sample("b", txt=" \n"), "the txt: the caption is empty"),
    "broken JSON": (sample("b", json='{"a": '), r"the json: not JSON \(.*column 7\)"),
    "JSON that is no object": (sample("b", json="[1]"), "the json: it is not a JSON object"),
    "a JSON field twice": (sample("b", json='{"a": 1, "a": 2}'), "the json: the field 'a' is there twice"),
    "a class that is no number": (
        sample("b", cls="cat"),
        "the cls: the class must be a whole number, not 'cat'",
    ),
    "a negative class": (sample("b", cls="-1"), "the label -1 is not in 0.."),
    "an endless class": (sample("b", cls="9" * 25), r"the label \d+ is not in 0.."),
    "two captions": (
        sample("b") + [("b.caption", "x")],
        "txt and caption are both its text: --columns text=txt",
    ),
    "two common names": (
        sample("b", txt=None, json='{"sentence": "s", "description": "d"}'),
        "the json: the fields sentence and description can each be the text: choose by --columns text=json.sentence",
    ),
    "a member twice": (sample("b") + [("b.PNG", png(2))], "the member 'b.PNG' is there twice"),
    "nothing that is read": (sample("b", png=None, txt=None), "the sample 'b' has no file and no caption"),
    "a symbolic link": (
        sample("b", png=None) + [(special("b.png", tarfile.SYMTYPE, "a.png"), b"")],
        "the member 'b.png' is a link to 'a.png': write the tar with --dereference",
    ),
    "a hard link": (
        sample("b", png=None) + [(special("b.png", tarfile.LNKTYPE, "a.png"), b"")],
        "the member 'b.png' is a link to 'a.png'",
    ),
    "a device": (
        sample("b", png=None) + [(special("b.png", tarfile.FIFOTYPE), b"")],
        "the member 'b.png' is no regular file",
    ),
}


@pytest.mark.parametrize("members, reason", BAD_SAMPLES.values(), ids=BAD_SAMPLES)
def test_a_bad_sample_is_left_out_and_costs_no_other(tmp_path, members, reason):
    path = write_tar(tmp_path / "a.tar", sample("a") + members + sample("c") + sample("d"))
    with pytest.raises(BadExampleError, match=f"a.tar:2: {reason}"):
        open_tar(path)
    for _ in range(2):  # with a new index, and with the one that was saved
        bad_examples = BadExamples("skip")
        source = open_tar(path, bad_examples=bad_examples)
        assert captions(source) == ["caption a", "caption c", "caption d"]
        assert [(item.file, item.line) for item in bad_examples.items] == [(str(path), 2)]
        np.testing.assert_array_equal(
            source.batch(np.array([1]))["image"][0], np.array(Image.open(io.BytesIO(png(0))))
        )


def test_a_sparse_member_is_refused(tmp_path):
    """A file of the GNU form whose content is stored in pieces."""
    path = write_tar(
        tmp_path / "a.tar", sample("a") + sample("b", png=None) + [("b.png", png(0))] + sample("c")
    )
    data = bytearray(path.read_bytes())
    with tarfile.open(path) as file:
        offset = file.getmember("b.png").offset
    data[offset + 156 : offset + 157] = b"S"
    data[offset + 483 : offset + 495] = data[offset + 124 : offset + 136]  # the real size
    data[offset + 148 : offset + 156] = b" " * 8
    data[offset + 148 : offset + 156] = b"%06o\0 " % sum(data[offset : offset + 512])
    path.write_bytes(data)
    with pytest.raises(BadExampleError, match="a.tar:2: the member 'b.png' is a sparse file"):
        open_tar(path)


def test_members_of_one_key_in_several_places_cost_both(tmp_path):
    members = sample("a", txt=None) + sample("b") + [("a.txt", "late")] + sample("c")
    path, bad_examples = write_tar(tmp_path / "a.tar", members), BadExamples("skip")
    assert captions(open_tar(path, bad_examples=bad_examples)) == ["caption b", "caption c"]
    assert [item.line for item in bad_examples.items] == [1, 3]
    assert "members of the sample 'a' are in several places" in bad_examples.items[0].reason
    table = TarTable(str(path), "all", BadExamples("skip"), progress=False)
    assert [table.key(0), table.key(1)] == ["b", "c"] and table.location(1)[1] == 4


@pytest.mark.parametrize(
    ("cut", "kept", "reason"),
    [
        (
            lambda ends: ends["c.png"] + 10,
            2,
            "the file is truncated: it has .* bytes, the content of a member ends",
        ),
        (lambda ends: ends["b.cls"] + 512 + 100, 1, "a header cannot be read .truncated header"),
        (lambda ends: ends["b.cls"] + 512, 1, "the file ends without an end mark"),
        (lambda ends: 0, 0, "the file is empty"),
        (lambda ends: 100, 0, "a header cannot be read .truncated header"),
    ],
    ids=["in a member", "in a header", "between members", "empty", "in the first header"],
)
def test_the_samples_before_the_end_of_a_truncated_shard_remain(tmp_path, cut, kept, reason):
    write_tar(tmp_path / "z.tar", sample("z"))
    path = write_tar(tmp_path / "a.tar", sample("a") + sample("b") + sample("c"))
    with tarfile.open(path) as file:
        ends = {info.name: info.offset_data for info in file}
    os.truncate(path, cut(ends))
    bad_examples = BadExamples("skip")
    source = open_tar(tmp_path, bad_examples=bad_examples)
    assert captions(source) == ["caption a", "caption b"][:kept] + ["caption z"]
    (item,) = bad_examples.items
    assert (item.file, item.line) == (str(path), kept + 1)
    with pytest.raises(BadExampleError, match=f"a.tar:{kept + 1}: {reason}"):
        open_tar(tmp_path)


def test_a_shard_without_samples_adds_none(tmp_path):
    write_tar(tmp_path / "a.tar", [])
    with pytest.raises(ValueError, match="no usable example"):
        open_tar(tmp_path)
    write_tar(tmp_path / "b.tar", sample("b"))
    assert captions(open_tar(tmp_path)) == ["caption b"]


def test_what_follows_the_end_mark_is_reported(tmp_path):
    one, other = (write_tar(tmp_path / name, sample(name[0])) for name in ("a.tar", "b.tar"))
    one.write_bytes(one.read_bytes() + other.read_bytes())
    bad_examples = BadExamples("skip")
    assert captions(open_tar(one, bad_examples=bad_examples)) == ["caption a"]
    assert bad_examples.items[0].line == 2 and "data behind the end mark" in bad_examples.items[0].reason


def test_a_damaged_header_ends_what_can_be_read(tmp_path):
    path = write_tar(tmp_path / "a.tar", sample("a") + sample("b") + sample("c"))
    data = bytearray(path.read_bytes())
    with tarfile.open(path) as file:
        data[file.getmember("c.png").offset + 130] ^= 1
    path.write_bytes(data)
    bad_examples = BadExamples("skip")
    assert captions(open_tar(path, bad_examples=bad_examples)) == ["caption a"]
    assert [item.line for item in bad_examples.items] == [2] and "header" in bad_examples.items[0].reason


def test_a_sample_with_two_members_of_one_kind_among_many_is_a_bad_example(tmp_path):
    path = write_tar(tmp_path / "a.tar", samples(4) + sample("b") + [("b.jpg", png(3))])
    bad_examples = BadExamples("skip")
    assert len(open_tar(path, bad_examples=bad_examples)) == 4
    assert "png and jpg are both its image: --columns image=png chooses one" in bad_examples.items[0].reason


def test_a_missing_image_is_missing(tmp_path):
    path = write_tar(tmp_path / "a.tar", sample("a") + sample("b", png=None) + sample("c"))
    batch = open_source(f"tar:{path}", "all").batch(np.arange(3))
    assert batch["present"]["image"].tolist() == [True, False, True] and not batch["image"][1].any()


def test_a_million_samples_open_from_their_indexes(tmp_path, monkeypatch):
    """What is kept of a sample is a few numbers: no Python object."""
    count = 50_000
    roles = tar_index.FieldRoles({})
    path = write_tar(tmp_path / "0.tar", samples(2))
    index = tar_index.build_index(path, roles)
    many = {
        name: np.repeat(value, count // 2, axis=np.ndim(value) - 1 if name != "hashes" else 0)
        for name, value in index._asdict().items()
        if isinstance(value, np.ndarray) and name not in ("keys", "key_ends")
    }
    key_ends = np.arange(1, count + 1)
    index = index._replace(**many, keys=np.zeros(count, np.uint8), key_ends=key_ends, samples=count)
    tar_index.save_index(path, roles, index)
    table = TarTable(str(path), "all", BadExamples(), progress=False)
    arrays = [
        *table._offsets.values(),
        *table._sizes.values(),
        table._samples,
        table._numbers,
        table._shard_of,
    ]
    assert len(table) == count and all(isinstance(array, np.ndarray) for array in arrays)
    assert sum(array.nbytes for array in arrays) < 100 * count


def test_shards_that_are_no_files_are_refused(tmp_path):
    (tmp_path / "a" / "0.tar").mkdir(parents=True)
    (tmp_path / "b").mkdir()
    os.mkfifo(tmp_path / "b" / "0.tar")  # reading it would wait for ever
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "0.tar").symlink_to("nowhere")
    for folder, reason in (
        ("a", "no regular file"),
        ("b", "no regular file"),
        ("c", "a link to a file that is not"),
    ):
        with pytest.raises(ValueError, match=rf"{folder}/0\.tar is {reason}"):
            find_shards(str(tmp_path / folder))


def test_a_compressed_shard_beside_others_is_refused(tmp_path):
    write_tar(tmp_path / "0.tar", samples(3))
    (tmp_path / "0.tar.gz").write_bytes(b"")  # what 0.tar was made of
    assert len(find_shards(str(tmp_path))) == 1
    (tmp_path / "1.tar.gz").write_bytes(b"")  # its samples would be missing
    with pytest.raises(ValueError, match=r"1\.tar\.gz is compressed"):
        find_shards(str(tmp_path))


def test_an_empty_path_is_refused(tmp_path):
    write_tar(tmp_path / "0.tar", samples(3))
    with pytest.raises(ValueError, match="has an empty path before or after '::'"):
        find_shards(f"{tmp_path}/0.tar::")
