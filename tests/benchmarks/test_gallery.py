"""The gallery: what is shown of each kind of run, and the page in docs/gallery."""

import functools
import io
import json
import pathlib
import re
import shlex
import shutil

import numpy as np
import pytest
import soundfile
from PIL import Image

import benchmarks.gallery
from benchmarks.gallery import cells, kinds, page, read_test_examples, runs, samples
from benchmarks.gallery.__main__ import write_gallery
from tests.inference.all_kinds import save_all_kinds
from tests.inference.runs import COLOURS
from xmodal_jax.data.shapes.grammar import parse as parse_caption
from xmodal_jax.data.shapes.questions import ANSWERS
from xmodal_jax.inference import loading
from xmodal_jax.train.command_line import parse
from xmodal_jax.train.run import to_json

ROOT = pathlib.Path(__file__).parents[2]
GALLERY = ROOT / "docs" / "gallery"
of_the_project = pytest.mark.skipif(not GALLERY.is_dir(), reason="there is no gallery yet")
METRICS = {
    "captioning": {"test/factor_accuracy": 0.25, "test/unknown": 1.0},
    "contrastive": {"text_to_image/recall@1": 0.5},
    "gan_zoo": {"hinge/judge_kernel_distance": 0.125, "hinge/precision": 0.25},
}


def finish(folder, kind, **result):
    """Adds the files of a run that has ended, beside its checkpoint."""
    (folder / "config.json").write_text(json.dumps({"data": "shapes", "input": {}, "smoke": True}))
    timing = {"total": 12.4, "train": 7.6}
    result = {"experiment": kind, "metrics": METRICS.get(kind, {}), "timing": timing, "steps": 3000} | result
    (folder / "result.json").write_text(json.dumps(result))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a finished run of each kind."""
    folder = tmp_path_factory.mktemp("runs")
    save_all_kinds(folder, latent=kinds.LATENT)
    for name in ("hinge", "wgan"):
        shutil.copytree(folder / "text_to_image_gan", folder / "gan_zoo" / name)
        finish(folder / "gan_zoo" / name, "text_to_image_gan", seeds=[0])
    for kind in kinds.KINDS:
        finish(
            folder / kind, kind, **({"timing": {"total": 9.0, "train": None}} if kind == "gan_zoo" else {})
        )
    return folder


def examples(run, count, split="test"):
    """Test examples that the small runs can read, in place of those of the data set."""
    rng, count = np.random.default_rng(0), min(count, 12)
    modalities = {
        "captioning": "image text", "contrastive": "image text", "fusion": "image text", "gan_zoo": "image text",
        "multimodal_vae": "image image_sketch text audio", "speech_recognition": "audio text",
        "speech_synthesis": "audio text", "text_to_image_flow": "image text",
        "text_to_image_gan": "image text", "vae": "image",
    }[pathlib.Path(run).name]  # fmt: skip
    side = 8 if "flow" in str(run) else 11
    pictures = lambda: list(rng.integers(0, 256, (count, side, side, 3)).astype(np.uint8))
    known = {
        "image": pictures(), "image_sketch": pictures(), "text": [COLOURS[k % 3] for k in range(count)],
        "audio": [(rng.integers(-9000, 9000, 1200 + k).astype(np.int16), 1009) for k in range(count)],
    }  # fmt: skip
    parsed = {"meaning": [parse_caption("a red star")] * count}
    meanings = parsed if pathlib.Path(run).name.startswith(("captioning", "text_to")) else {}
    return {m: known[m] for m in modalities.split()} | meanings | {
        "voice": ["anna", "bert"] * (count // 2), "answer": ["yes", "no"] * (count // 2),
    }  # fmt: skip


pytestmark = pytest.mark.filterwarnings("ignore:the text .* has words that the run was not trained on")
"""The small runs know few words."""


@pytest.fixture(scope="module", autouse=True)
def loaded_once():
    """Each run is loaded, and its programs are compiled, once for all tests."""
    make_model = functools.cache(lambda path: original(loading.restore(path)))
    original = loading.make_model
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "make_model", lambda run: make_model(run.path.resolve()))
        yield


@pytest.fixture(scope="module")
def gallery(trained, tmp_path_factory):
    """The gallery of all kinds of runs."""
    out = tmp_path_factory.mktemp("gallery")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "read_test_examples", examples)
        write_gallery([trained / kind for kind in kinds.KINDS], out, "a toy")
    return out


def named_files(text):
    """The files that a page names."""
    return set(re.findall(r'src="([^"]+)"', text)) | set(re.findall(r"\]\(([^)#]+)\)", text))


def test_every_kind_of_run_has_its_samples(gallery):
    sections = json.loads((gallery / page.DATA).read_text())
    assert list(sections) == list(kinds.KINDS)
    for kind, entry in kinds.KINDS.items():
        left_out = {"Spoken sentences find pictures"}  # the small run has no sounds
        titles = [x.title for x in entry.samples if x.title not in left_out]
        assert [x["title"] for x in sections[kind]["samples"]] == titles
        for sample in sections[kind]["samples"]:
            assert {len(row) for row in sample["rows"]} == {len(sample["columns"])}, sample["title"]
    text = (gallery / "README.md").read_text()
    assert "3,000 steps, training 8 s, in all 12 s (a toy)." in text and "in all 9 s" in text
    assert "| `test/factor_accuracy` | 0.250 | of all sizes" in text and "test/unknown" not in text
    assert "| `hinge/judge_kernel_distance` | 0.125 | kernel" in text and "hinge/precision" not in text
    assert "python experiments/captioning.py --smoke" in text


def test_the_pages_name_the_files_that_are_there(gallery):
    stored = {path.relative_to(gallery).as_posix() for path in (gallery / "files").iterdir()}
    assert named_files((gallery / "README.md").read_text()) == stored | {page.STRIP}
    assert named_files((gallery / "index.html").read_text()) == stored
    for name in stored:
        if name.endswith(".png"):
            Image.open(gallery / name).load()
        else:
            assert soundfile.info(gallery / name).channels == 1


@pytest.mark.parametrize("kind", kinds.KINDS)
def test_the_code_on_the_page_makes_the_samples(kind, gallery, trained, tmp_path, monkeypatch):
    """The code of a kind runs from the first line to the last, and its values are what the page shows."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").symlink_to(trained)
    monkeypatch.setattr(benchmarks.gallery, "read_test_examples", examples)
    names = {}
    for shown in json.loads((gallery / page.DATA).read_text())[kind]["samples"]:
        *lines, last = shown["code"].splitlines()
        exec("\n".join(lines), names)
        result = eval(last, names)
        entry = next(x for x in kinds.KINDS[kind].samples if x.title == shown["title"])
        texts = [
            cell
            for row in entry.rows(result, names.get("voices", names["test"]))
            for cell in row
            if isinstance(cell, str)
        ]
        assert texts == [cell for row in shown["rows"] for cell in row if isinstance(cell, str)]


def test_a_run_replaces_its_section_alone(gallery, trained, tmp_path, monkeypatch):
    out = tmp_path / "gallery"
    shutil.copytree(gallery, out)
    monkeypatch.setattr(runs, "read_test_examples", lambda run, count, split="test": examples(run, 4))
    (out / "files" / "captioning-99.png").write_bytes(b"of an earlier page")
    write_gallery([trained / "captioning"], out, "")
    sections = json.loads((out / page.DATA).read_text())
    assert (
        len(sections["captioning"]["samples"][0]["rows"]) == 4
        and "toy" not in sections["captioning"]["facts"]
    )
    assert sections["vae"] == json.loads((gallery / page.DATA).read_text())["vae"]
    stored = {path.relative_to(out).as_posix() for path in (out / "files").iterdir()}
    assert stored == set().union(*map(page.files_of, sections.values()))


def test_runs_that_cannot_be_shown_are_named(trained, tmp_path):
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "config.json").write_text("{}")
    shutil.copytree(trained / "vae", tmp_path / "another")
    shutil.copytree(trained / "vae", tmp_path / "translate")
    finish(tmp_path / "translate", "translate")
    for paths, message in [
        ((tmp_path / "begun",), "begun has no result.json: give runs that have ended"),
        ((trained / "vae", tmp_path / "another"), "vae and .*another are both of vae.py"),
        ((tmp_path / "translate",), "a run of translate.py; the gallery shows those of contrastive, "),
        ((tmp_path / "nowhere",), "nowhere does not exist"),
    ]:
        with pytest.raises(ValueError, match=message):
            runs.open_runs(paths)


@pytest.mark.parametrize(
    "kind, flags",
    [
        ("captioning", ""),
        ("captioning", "--seed 1 --steps 7 --modalities text video --model.contrastive info_nce"),
        ("contrastive", "--data 'folder:a b' --optimizer.ema 0.5 --input.channels 1"),
        ("fusion", "--task commands --model.modality-dropout 0.25"),
        ("gan_zoo", "--judge runs/captioning --objectives hinge wgan_gp --seeds 1"),
        ("multimodal_vae", "--missing 0.5"),
        ("text_to_image_gan", "--judge runs/a --redescribe runs/b"),
        ("vae", "--model iwae --model.samples 3 --no-resident"),
    ],
)
def test_the_command_of_a_run_trains_the_same(kind, flags, tmp_path):
    module = runs.load_script(kind)
    config_class = module.CommandConfig if "commands" in flags else module.Config
    config = parse(config_class, None, shlex.split(flags.replace("--input.", "--")))
    run = runs.StoredRun(tmp_path, to_json(config), {}, [])
    command = shlex.split(runs.command_of(kind, run))
    assert command[:2] == ["python", f"experiments/{kind}.py"]
    assert parse(config_class, None, command[2:]) == config
    assert len(command) == 2 or flags


def test_examples_are_the_first_of_the_test_split(tmp_path):
    def read(count, **config):
        (tmp_path / "config.json").write_text(json.dumps({"data": "shapes", **config}))
        return read_test_examples(tmp_path, count)

    size = {"train_size": 40}
    two = read(2, input=size | {"modalities": ["text", "image"]})
    five = read(5, input=size | {"modalities": ["text", "image"]})
    assert [len(two[m]) for m in ("text", "image", "meaning")] == [2, 2, 2] and two["text"] == five["text"][
        :2
    ]
    assert five["image"][0].shape == (32, 32, 3) and five["image"][0].dtype == np.uint8
    latent = read(5, input=size | {"modalities": ["image"]}, judge_steps=3)
    assert len(latent["answer"]) == 5 and None not in latent["answer"] and None in five["answer"]
    questions = read(6, input=size, task="questions")
    assert questions["text"][0].split() and set(questions["answer"]) <= set(ANSWERS)
    assert (questions["image"][0] == questions["image"][1]).all()  # of one scene


def test_sentences_of_training_are_left_out_of_speech(tmp_path):
    data = {"train_size": 12, "modalities": ["text", "audio"], "max_seconds": 2.0}
    config = {"data": "shapes", "input": data}
    (tmp_path / "config.json").write_text(json.dumps(config | {"unseen": True}))
    heard = read_test_examples(tmp_path, 3)
    wave, rate = heard["audio"][0]
    assert rate == 16_000 and wave.dtype == np.int16 and 4000 < len(wave) <= 32_000  # without padding
    assert len(heard["voice"]) == 3 and all(isinstance(name, str) for name in heard["voice"])
    unseen = read_test_examples(tmp_path, 3, "voices")
    assert "voice" not in unseen and unseen["text"] != heard["text"]


def test_a_frame_marks_the_right_picture():
    pictures = [np.full((4, 4, 3), shade, np.uint8) for shade in (0, 100, 200)]
    shown = np.asarray(cells.strip(pictures, "three", right=1).image)
    width = cells.TILE + 2 * cells.GAP
    assert shown.shape == (width, 3 * width, 4)
    assert shown[0, :, 3].nonzero()[0].tolist() == list(range(width, 2 * width))
    assert shown[width // 2, [width // 2, width + width // 2], 0].tolist() == [0, 100]


def test_spectrograms_have_a_pixel_for_each_ten_milliseconds():
    wave = np.sin(2 * np.pi * 1000 * np.arange(8000) / 16_000).astype(np.float32)
    image = np.asarray(cells.spectrogram((wave, 16_000), "a tone").image).astype(int).sum(axis=2)
    assert image.shape == (80, 51)
    # 1000 Hz is 1000 mel on the HTK scale; Slaney's: 15 of 45.2 mels, which the 80 bands divide evenly.
    assert abs(image[:, 25].argmax() - (79 - round(81 * 15 / 45.245) + 1)) <= 1
    silence = np.asarray(cells.spectrogram((np.zeros(1600, np.int16), 16_000), "").image)
    assert silence.max() <= 4


def test_files_hold_what_they_are_made_of():
    picture = cells.Picture(cells.enlarge(np.arange(48, dtype=np.uint8).reshape(4, 4, 3)), "a picture")
    stored = np.asarray(Image.open(io.BytesIO(picture.encode())).convert("RGB"))
    assert (stored[:: cells.TILE // 4, :: cells.TILE // 4].ravel() == np.arange(48)).all()
    colours = (
        np.random.default_rng(0).integers(0, 256, (20, 20, 3)).astype(np.uint8)
    )  # more than a palette holds
    stored = np.asarray(Image.open(io.BytesIO(cells.Picture(Image.fromarray(colours), "").encode())))
    assert (stored == colours).all()
    tone = (8000 * np.sin(np.arange(8000) / 5)).astype(np.int16)
    sound = cells.heard((tone, 8000))
    again, rate = soundfile.read(io.BytesIO(sound.encode()))
    assert rate == cells.SOUND_RATE and abs(len(again) - 16_000) < 2400  # MP3 has whole frames, and a delay
    assert again[4000:12_000].std() == pytest.approx(8000 / 2**15 / 2**0.5, rel=0.02)
    assert sound.encode() == sound.encode()


def test_scores_near_zero_have_three_decimals():
    assert [runs.format_score([x]) for x in (-9.3e-4, 0.25, 69.487, 4024.3)] == [
        "-0.001",
        "0.250",
        "69.49",
        "4,024",
    ]
    assert runs.format_score([0.25, 0.75]) == "0.500 ± 0.354" and runs.format_score([None]) == "n/a"


def test_marks_stand_at_wrong_words():
    marked = samples.compare("a red star", "a blue star below")
    assert [w for w, wrong in marked.pieces if wrong] == ["red", "[blue]", "[below]"]
    cell = {"marked": [["a", False], ["x*y|", True], ["<b>", False]]}
    assert page._markdown_cell(cell) == "a **x&#42;y&#124;** &lt;b&gt;"
    assert page._html_cell(cell) == "a <mark>x&#42;y&#124;</mark> &lt;b&gt;"


@of_the_project
def test_its_files_are_small_and_all_of_them_are_shown():
    files = {p.relative_to(GALLERY).as_posix(): p.stat().st_size for p in GALLERY.rglob("*") if p.is_file()}
    assert sum(files.values()) <= 2 * 2**20
    assert max(size for name, size in files.items() if name.endswith(".mp3")) <= 100_000
    pages = {"README.md", "index.html", page.DATA, page.STRIP}
    for name in ("README.md", "index.html"):
        shown = named_files((GALLERY / name).read_text(encoding="utf-8"))
        assert shown | pages == set(files)


@of_the_project
def test_its_pages_are_those_of_the_code():
    sections = json.loads((GALLERY / page.DATA).read_text(encoding="utf-8"))
    assert (GALLERY / "README.md").read_text(encoding="utf-8") == page.markdown(sections)
    assert (GALLERY / "index.html").read_text(encoding="utf-8") == page.page(sections)
    for kind, section in sections.items():
        by_title = {x.title: x for x in kinds.KINDS[kind].samples}
        for number, shown in enumerate(section["samples"]):
            count = kinds.KINDS[kind].examples
            code = runs.code_of(by_title[shown["title"]], kind, count, complete=not number)
            assert shown["code"] == code, "run python -m benchmarks.gallery with this run again"


@of_the_project
def test_the_readme_shows_the_strip():
    assert f"docs/gallery/{page.STRIP}" in (ROOT / "README.md").read_text(encoding="utf-8")
