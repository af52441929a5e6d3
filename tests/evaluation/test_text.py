"""Texts over whole data sets, scored; trained runs as functions; chains of them."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import soundfile
from PIL import Image

from tests.data.test_text import gpt2_like
from tests.models.test_seq2seq import CONFIG
from xmodal_jax.core.runtime import Timer
from xmodal_jax.data.bad_examples import BadExampleError, BadExamples
from xmodal_jax.data.media import Resize
from xmodal_jax.data.open import DataOptions
from xmodal_jax.data.pipeline import Loader
from xmodal_jax.data.shapes.source import SpokenShapes
from xmodal_jax.data.sources.arrays import ArraySource
from xmodal_jax.data.text import TokenizeTransform, train_tokenizer
from xmodal_jax.data.views import Subset
from xmodal_jax.evaluation.text import ReferenceTexts, TextGenerationConfig, TextGenerator, source_modality
from xmodal_jax.inference.inputs import InputFormat
from xmodal_jax.inference.translate import apply_chain, find_chain, find_inputs, read_inputs, write_outputs
from xmodal_jax.inference.translators import Translator, load_translator
from xmodal_jax.models.seq2seq import (
    AttentionObjective,
    BeamSearchConfig,
    CTCObjective,
    SamplingConfig,
    make_seq2seq,
)
from xmodal_jax.models.speech import SpeechConfig
from xmodal_jax.models.towers import AudioFeatures
from xmodal_jax.nets.encoders import ConvNetConfig, TextTransformerConfig
from xmodal_jax.report import text as panels
from xmodal_jax.report import text_figures
from xmodal_jax.report.page import MarkedText, Report
from xmodal_jax.train.loop import fit
from xmodal_jax.train.optim import Optimizer
from xmodal_jax.train.run import Run, from_json, to_json

WORDS = ("red", "green", "blue")


def pictures(n=24, seed=0):
    """Plain pictures and the names of their colours, twice over where they are bright."""
    rng = np.random.default_rng(seed)
    colour, bright = rng.integers(0, 3, n), rng.integers(0, 2, n)
    image = np.zeros((n, 8, 8, 3), np.uint8)
    image[np.arange(n), :, :, colour] = (90 + 120 * bright)[:, None, None]
    captions = np.array([" ".join([WORDS[c]] * (1 + b)) for c, b in zip(colour, bright, strict=True)], object)
    return ArraySource({"image": image, "caption": captions})


def test_the_subject_is_the_one_modality_besides_text():
    source = SpokenShapes(size=3, modalities=("text", "image"))
    assert source_modality(source, ("image", "video")) == "image"
    for modalities in (("text", "audio"), ("image",), ("text", "image", "video")):
        with pytest.raises(ValueError, match="--modalities text image"):
            source_modality(SpokenShapes(size=3, modalities=modalities), ("image", "video"))


def test_a_script_knows_other_words_for_the_same():
    scenes = SpokenShapes(size=40, modalities=("text", "image"))
    script = ReferenceTexts(Subset(scenes, np.arange(10, 30)), limit=12)
    assert script.texts == scenes.captions(np.arange(10, 22)).tolist()
    assert [len(known) for known in script.references] == [5] * 12
    perfect = script.caption_scores([known[3] for known in script.references], "p/")
    assert perfect["p/factor_accuracy"] == 1 and perfect["p/bleu"] == pytest.approx(100)
    wrong = script.caption_scores(script.texts[1:] + script.texts[:1], "w/")
    assert wrong["w/exact_accuracy"] == 0 and wrong["w/cider"] < perfect["p/cider"]


def test_the_first_texts_are_those_of_a_smaller_split():
    scenes = SpokenShapes(size=20, modalities=("text", "image"))
    first, smaller = ReferenceTexts(scenes).first(6), ReferenceTexts(Subset(scenes, np.arange(6)))
    assert len(first.source) == 6 and (first.texts, first.references) == (smaller.texts, smaller.references)
    captions = smaller.texts[1:] + smaller.texts[:1]
    assert first.caption_scores(captions, "") == smaller.caption_scores(captions, "")
    assert ReferenceTexts(scenes).first(99).texts == ReferenceTexts(scenes).texts


def test_sentences_of_the_training_data_are_left_out():
    source = pictures()
    script = ReferenceTexts(source, exclude={"red", "blue blue"})
    kept = [c for c in source.arrays["caption"] if c not in ("red", "blue blue")]
    assert script.texts == kept and script.excluded == 24 - len(kept)
    assert script.meanings is None
    scores = script.error_rates([f"{text} red" for text in kept], "x/")
    assert scores["x/wer"] == pytest.approx(len(kept) / sum(len(t.split()) for t in kept))
    assert scores["x/exact_accuracy"] == 0
    assert script.caption_scores(kept, "y/")["y/exact_accuracy"] == 1
    with pytest.raises(ValueError, match="nothing is left"):
        ReferenceTexts(source, exclude=set(source.arrays["caption"].tolist()))


def writer_config():
    image = ConvNetConfig(width=16, norm="none")
    decoder = dataclasses.replace(CONFIG.decoder, dropout=0.0)
    return dataclasses.replace(CONFIG, objective=AttentionObjective(), image=image, decoder=decoder)


def test_ctc_has_no_blank_where_id_0_is_a_word():
    model = dataclasses.replace(writer_config(), objective=CTCObjective())
    with pytest.raises(ValueError, match="id 0 for its blank, which this tokenizer gives to '!'"):
        TextGenerator(model, "image", gpt2_like(), length=5, decodings={"test": None})
    TextGenerator(model, "image", train_tokenizer(["red"], "word"), length=5, decodings={"test": None})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A trained captioning run, and what it writes about pictures that it did not see."""
    folder, source = tmp_path_factory.mktemp("run"), pictures(200)
    tokenizer = train_tokenizer(source.arrays["caption"].tolist(), "word")
    tokenize, model = TokenizeTransform(tokenizer, 5), writer_config()
    config = TextGenerationConfig(
        steps=150, batch_size=16, model=model, generation=BeamSearchConfig(beams=2), run_dir=folder,
        input=DataOptions(image_fit="pad"),
    )  # fmt: skip
    method = make_seq2seq(model, "image", vocab_size=tokenizer.vocab_size, length=5)
    arrays = {k: v for k, v in tokenize(source.arrays).items() if k != "caption"}
    loader = Loader(ArraySource(arrays), batch_size=16, seed=0)
    metadata = {
        "source": "image",
        "target": "text",
        "shape": (8, 8, 3),
        "length": 5,
        "tokenizer": tokenizer.files(),
    }
    with Run.create(folder, config, tensorboard=False) as made:
        result = fit(
            method,
            loader,
            config,
            Optimizer(name="muon", learning_rate=1e-2),
            made,
            Timer(),
            metadata=metadata,
        )
    loader.close()
    writer = TextGenerator(
        model, "image", tokenizer, length=5, decodings={"test": config.generation}, batch_size=7
    )
    return folder, writer, result.params[0]


def test_learns_to_write_and_writes_the_same_when_loaded(run):
    folder, writer, params = run
    unseen = pictures(50, seed=1)
    written = writer(params, unseen, "test")
    right = np.mean([a == b for a, b in zip(written, unseen.arrays["caption"], strict=True)])
    assert right > 0.9  # six captions: guessing gives a sixth
    loaded = load_translator(folder)
    assert (loaded.source, loaded.target, loaded.shape) == ("image", "text", (8, 8, 3))
    assert loaded.apply(list(unseen.arrays["image"])) == written
    # Files become squares as those of training did.
    assert loaded.resize == Resize("pad", "bicubic")
    Image.fromarray(np.full((4, 8, 3), 200, np.uint8)).save(folder / "wide.png")
    _, (image,) = read_inputs(find_inputs(str(folder / "wide.png")), loaded, BadExamples())
    assert not image[:2].any() and (image[2:6] == 200).all() and not image[6:].any()


@pytest.mark.parametrize(("options", "tokens"), [({"text_cleanup": "lower"}, 3), ({}, 3)])
def test_texts_are_cleaned_as_those_of_training(options, tokens):
    tokenizer = train_tokenizer(["red"], "word")
    metadata = {"config": options, "shapes": {}, "tokenizer": tokenizer.files(), "length": tokens}
    tokenize = InputFormat.from_metadata(metadata, ("text",)).transform
    texts = tokenize({"caption": np.array(["RED", "red"], object)})["text"]
    assert (texts[0] == texts[1]).all() == bool(options)  # "RED" is an unknown word unless it is cleaned


def test_a_tokenizer_without_an_end_cannot_write():
    tokenizer = train_tokenizer(["red"], "word")
    tokenizer.eos_id = -1
    with pytest.raises(ValueError, match="begin or end"):
        TextGenerator(CONFIG, "image", tokenizer, length=5, decodings={})


def test_configurations_come_back_from_json():
    config = SpeechConfig(text=TextTransformerConfig(width=8), features=AudioFeatures(mels=5))
    assert from_json(SpeechConfig, json.loads(json.dumps(to_json(config)))) == config
    writing = TextGenerationConfig(model=CONFIG, generation=SamplingConfig(top_k=3))
    found = from_json(TextGenerationConfig, json.loads(json.dumps(to_json(writing))))
    assert found.model == CONFIG and found.generation == SamplingConfig(top_k=3)
    with pytest.raises(ValueError, match="no field 'wings'"):
        from_json(SpeechConfig, {"wings": 2})


def test_a_run_that_translates_nothing_is_named(tmp_path):
    from xmodal_jax.train.checkpoint import Checkpoints

    kept = Checkpoints(tmp_path / "checkpoints")
    kept.save(1, {"params": {"w": jax.numpy.ones(2)}}, {"config": {}, "step": 1})
    kept.close()
    with pytest.raises(ValueError, match="captioning.py"):
        load_translator(tmp_path)


SEE = Translator("image", "text", lambda x: [f"{int(i.max())}" for i in x], 16_000, (8, 8, 3))
HEAR = Translator("audio", "text", lambda x: [str(len(i)) for i in x], 16_000)
SAY = Translator(
    "text", "audio", lambda x, who: [np.full(int(t), w, np.float32) for t, w in zip(x, who, strict=True)],
    16_000, speakers=("ann", "bob"),
)  # fmt: skip


def test_a_recording_longer_than_the_models_positions_is_cut_and_noted(tmp_path):
    """One long recording costs the others nothing."""
    for name, seconds in (("long", 2.5), ("short", 1.0)):
        soundfile.write(tmp_path / f"{name}.wav", np.zeros(int(16_000 * seconds)), 16_000)
    bad_examples = BadExamples()
    names, waves = read_inputs(find_inputs(str(tmp_path)), HEAR._replace(max_seconds=2.0), bad_examples)
    lengths = dict(zip(names, map(len, waves), strict=True))
    assert lengths == {"long.wav": 32_000, "short.wav": 16_000} and sum(bad_examples.notes.values()) == 1


def test_the_shortest_chain_is_taken():
    assert find_chain([SAY, SEE, HEAR], "image", "audio") == [SEE, SAY]
    assert find_chain([SAY, SEE, HEAR], "audio", "text") == [HEAR]
    assert find_chain([SAY, HEAR], "text", "text") == [SAY, HEAR]
    with pytest.raises(ValueError, match="no way from video to text.*image to text"):
        find_chain([SEE], "video", "text")


def test_a_folder_of_pictures_becomes_speech(tmp_path):
    from PIL import Image

    folder = tmp_path / "photos"
    for name, value in (("b/two.png", 200), ("one.png", 100)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((20, 16, 3), value, np.uint8)).save(folder / name)
    found = find_inputs(str(folder))
    steps = find_chain([SEE, SAY], found.modality, "audio")
    names, inputs = read_inputs(found, steps[0], BadExamples())
    assert names == ["b/two.png", "one.png"] and inputs[0].shape == (8, 8, 3)
    stages = apply_chain(steps, inputs, speaker="bob")
    assert stages[1] == ["200", "100"]
    paths = write_outputs(tmp_path / "out", names, stages[2], sample_rate=16_000)
    import soundfile

    wave, rate = soundfile.read(paths[0], dtype="int16")
    assert rate == 16_000 and len(wave) == 200 and (wave == 32767).all()
    (folder / "broken.png").write_bytes(b"no picture")
    with pytest.raises(BadExampleError, match="broken.png"):
        read_inputs(find_inputs(str(folder)), SEE, BadExamples())
    bad_examples = BadExamples("skip")
    assert len(read_inputs(find_inputs(str(folder)), SEE, bad_examples)[0]) == 2 and len(bad_examples) == 1
    (folder / "sound.wav").write_bytes(b"")
    with pytest.raises(ValueError, match="audio and image"):
        find_inputs(str(folder))


def test_files_of_folders_that_share_a_name_further_down_keep_their_paths(tmp_path):
    from PIL import Image

    for name in ("a/raw/1.png", "b/raw/2.png"):
        (tmp_path / "photos" / name).parent.mkdir(parents=True)
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "photos" / name)
    names, _ = read_inputs(find_inputs(str(tmp_path / "photos")), SEE, BadExamples())
    assert names == ["a/raw/1.png", "b/raw/2.png"]


def test_words_and_lists_of_words(tmp_path):
    assert read_inputs(find_inputs("12"), SAY, BadExamples()) == (["words"], ["12"])
    (tmp_path / "list.txt").write_text("12\n\n7\n")
    names, inputs = read_inputs(find_inputs(str(tmp_path / "list.txt")), SAY, BadExamples())
    assert inputs == ["12", "7"] and names == ["list.txt:1", "list.txt:2"]
    paths = write_outputs(tmp_path, names, ["a", "b"], sample_rate=1)
    assert [p.name for p in paths] == ["list.txt-1.txt", "list.txt-2.txt"] and paths[1].read_text() == "b\n"
    with pytest.raises(FileNotFoundError, match="missing.png"):
        find_inputs(str(tmp_path / "missing.png"))
    (tmp_path / "arrays.npz").write_bytes(b"")
    with pytest.raises(ValueError, match=r"arrays.npz: a file .npz cannot be read; give .* from Python"):
        find_inputs(str(tmp_path / "arrays.npz"))
    with pytest.raises(ValueError, match="'eve'.*ann, bob"):
        apply_chain([SAY], ["3"], speaker="eve")
    with pytest.raises(ValueError, match="no run speaks"):
        apply_chain([SEE], [np.ones((8, 8, 3))], speaker="ann")


def test_panels_mark_what_is_wrong(tmp_path):
    scenes = SpokenShapes(size=30, modalities=("text", "image"))
    script, report = ReferenceTexts(scenes), Report("Captions")
    written = [*script.texts[:-1], "a red nonsense"]
    quality, marks = panels.caption_quality(script, written)
    assert (quality[:-1] == 1).all() and quality[-1] == 0
    assert marks[-1].pieces[-1] == ("nonsense", "wrong")
    panels.add_generated_texts(report, script, "image", quality, marks, measure="factor accuracy")
    scores = script.caption_scores(written, "test/")
    panels.add_scores(report, scores, ["test/factor_accuracy"])
    page = report.html()
    assert "<mark>nonsense</mark>" in page and "data:image/png" in page
    plain = ReferenceTexts(pictures())
    quality, marks = panels.transcript_quality(plain, ["red"] * 24)
    k = plain.texts.index("green green")
    assert quality[k] == 0 and marks[k] == MarkedText(
        [("red", "wrong"), ("green", "missing"), ("green", "missing")]
    )


def test_where_it_looks_is_drawn_for_every_word(run):
    _, writer, params = run
    script, report = ReferenceTexts(pictures(6, seed=3)), Report("Captions")
    written = writer(params, script.source, "test")
    panels.add_attention(report, writer, params, script, written, examples=2)
    assert report.html().count("<figure><picture>") == 2


@pytest.mark.parametrize("shape,tokens", [((8, 8, 3), 16), ((8, 8, 8, 3), 4 * 16), ((4, 8, 8, 3), 4)])
def test_each_word_has_its_picture(shape, tokens):
    weights = np.random.default_rng(0).uniform(size=(12, tokens)).astype(np.float32)
    fig = text_figures.image_attention(np.full(shape, 200, np.uint8), [f"w{k}" for k in range(12)], weights)
    assert [ax.get_title() for ax in fig.axes[:12]] == [f"w{k}" for k in range(12)]
    assert sum(bool(ax.images) for ax in fig.axes) == 12


def test_a_line_for_each_word_below_the_spectrogram():
    fig = text_figures.spectrogram_attention(np.zeros((40, 8)), ["a", "red"], np.ones((2, 10)) / 10, 0.01)
    assert [label.get_text() for label in fig.axes[1].get_yticklabels()] == ["a", "red"]
    assert fig.axes[1].images[0].get_extent()[1] == pytest.approx(0.4)


def test_without_captions_the_texts_are_the_names_of_the_classes():
    images = np.zeros((4, 2, 2, 3), np.uint8)
    labels = np.array([1, 0, -1, 1], np.int32)
    references = ReferenceTexts(ArraySource({"image": images, "label": labels}, ("cat", "dog")))
    assert references.texts == ["dog", "cat", "", "dog"]
    assert ReferenceTexts(ArraySource({"image": images})).texts == [""] * 4
