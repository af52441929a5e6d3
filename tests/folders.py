"""Small folders in the layouts in which data sets are published, four files in the training split and two in others.

File ``k`` of a split shows the gray level ``10 k + 5``, or is a recording of ``100 + k`` samples; its captions are ``a
thing k`` and, where a layout has several, ``the thing k``.
"""

import json

import numpy as np
import soundfile
from PIL import Image


def image(path, k):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 4, 3), 10 * k + 5, np.uint8)).save(path)


def sound(path, k):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.full(100 + k, 1000, np.int16), 16000)


def text(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def captions(k):
    return [f"a thing {k}", f"the thing {k}"]


def tsv(root):
    for split, n in (("train", 4), ("test", 2)):
        for k in range(n):
            image(root / split / f"{k}.png", k)
        text(root / split / "metadata.tsv", ["file_name\ttext", *(f"{k}.png\ta thing {k}" for k in range(n))])


def json_array(root):
    for split, n in (("train", 4), ("test", 2)):
        for k in range(n):
            image(root / split / f"{k}.png", k)
        rows = [json.dumps({"file_name": f"{k}.png", "text": captions(k)}) for k in range(n)]
        text(root / split / "metadata.json", ["[", *(r + "," for r in rows[:-1]), rows[-1], "]"])


def coco(root):
    """With a line for each object; the first four lines are those of the images of train2017."""
    for split, n in (("train2017", 4), ("val2017", 2)):
        for k in range(n):
            image(root / split / f"{k:03}.png", k)
        images = [json.dumps({"id": 70 + k, "file_name": f"{k:03}.png", "height": 4}) for k in range(n)]
        notes = [
            json.dumps({"image_id": 70 + k, "id": 2 * k + j, "caption": captions(k)[j]})
            for j in range(2)
            for k in range(n)
        ]
        start = f'{{"info": {{"year": 2017}}, "licenses": [{{"id": 1}}], "images": [{images[0]},'
        lines = [start, *(line + "," for line in images[1:-1]), images[-1] + '], "annotations": [']
        text(
            root / "annotations" / f"captions_{split}.json",
            [*lines, *(note + "," for note in notes[:-1]), notes[-1] + "]}"],
        )


def karpathy(root):
    entries = []
    for number, split in enumerate(["train", "val", "train", "test", "restval", "test", "train", "val"]):
        k = [i for i in range(8)][number]
        image(root / "val2014" / f"{k}.png", k)
        sentences = [{"tokens": c.split(), "raw": c, "sentid": j} for j, c in enumerate(captions(k))]
        entry = {"filepath": "val2014", "filename": f"{k}.png", "split": split, "sentences": sentences}
        entries.append(json.dumps(entry))
    lines = ['{"images": [', *(e + "," for e in entries[:-1]), entries[-1], '], "dataset": "coco"}']
    text(root / "dataset_coco.json", lines)


def _flickr_images(root, folder):
    for k in range(8):
        image(root / folder / f"{k}.png", k)


def flickr8k(root):
    _flickr_images(root, "Flicker8k_Dataset")
    lines = [f"{k}.png#{j}\t{captions(k)[j]}" for k in range(8) for j in range(2)]
    lines.append("2258277193_586949ec62.jpg.1#0\tno image has this name")
    text(root / "Flickr8k.token.txt", lines)
    text(root / "Flickr8k.lemma.token.txt", ["0.png#0\tlemma"])
    for split, numbers in (("train", [0, 2, 3, 6]), ("dev", [1, 7]), ("test", [4, 5])):
        text(root / f"Flickr_8k.{split}Images.txt", [f"{k}.png" for k in numbers])


def flickr30k(root):
    _flickr_images(root, "flickr30k_images")
    text(
        root / "results_20130124.token",
        [f"{k}.png#{j}\t{captions(k)[j]}" for k in range(8) for j in range(2)],
    )


def kaggle(root):
    _flickr_images(root, "Images")
    lines = [f"{k}.png,{captions(k)[j]}" for k in range(8) for j in range(2)]
    text(root / "captions.txt", ["image,caption", *lines])


def kaggle30k(root):
    _flickr_images(root, "flickr30k_images")
    lines = [f"{k}.png| {j}| {captions(k)[j]} ." for k in range(8) for j in range(2)]
    text(root / "results.csv", ["image_name| comment_number| comment", *lines])


def common_voice(root):
    number = 0
    for split, n in (("train", 4), ("dev", 2), ("test", 2)):
        lines = ["client_id\tpath\tsentence\tup_votes"]
        for k in range(n):
            sound(root / "clips" / f"c{number}.wav", k)
            lines.append(f'abc\tc{number}.wav\t"a" thing {k}\t2')
            number += 1
        text(root / f"{split}.tsv", lines)
    text(root / "invalidated.tsv", lines)


def ljspeech(root):
    for k in range(8):
        sound(root / "wavs" / f"LJ-{k}.wav", k)
    text(root / "metadata.csv", [f'LJ-{k}|"no. {k}, he said|a thing {k}' for k in range(8)])


def librispeech(root):
    for subset, chapters in (
        ("train-clean-100", ["19/198", "26/495"]), ("train-other-500", ["20/205"]), ("dev-clean", ["84/12"]),
        ("test-clean", ["61/70"]),
    ):  # fmt: skip
        for chapter in chapters:
            prefix, lines = chapter.replace("/", "-"), []
            for k in range(2):
                sound(root / subset / chapter / f"{prefix}-000{k}.flac", k)
                lines.append(f"{prefix}-000{k} A THING {k}")
            text(root / subset / chapter / f"{prefix}.trans.txt", lines)
    text(root / "README.TXT", ["x"])


def class_folders(root):
    for split, n in (("train", 2), ("test", 1)):
        for name in ("cat", "dog"):
            for k in range(n):
                image(root / split / name / f"{k}.png", k)


def classes_without_splits(root):
    for name in ("yes", "no"):
        for k in range(8):
            sound(root / name / f"{k}.wav", k)


TREES = {
    "tsv": tsv, "json": json_array, "coco": coco, "karpathy": karpathy, "flickr8k": flickr8k, "flickr30k": flickr30k,
    "kaggle": kaggle, "kaggle30k": kaggle30k, "common voice": common_voice, "ljspeech": ljspeech,
    "librispeech": librispeech, "class folders": class_folders, "classes without splits": classes_without_splits,
}  # fmt: skip
"""Functions that write a data set into an empty folder."""
