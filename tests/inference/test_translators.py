"""Runs of every kind as functions from one modality to another, and chains of them."""

import dataclasses
import json

import numpy as np
import pytest
import soundfile
from PIL import Image

from tests.inference.runs import COLOURS, coloured_pictures, plain_picture, save_text_run
from tests.inference.test_autoencoders import RATE, SMALL, save
from tests.inference.test_fusion import ANSWERS, TASKS, save_fusion
from xmodal_jax.data.bad_examples import BadExamples
from xmodal_jax.data.media import DEFAULT_RESIZE
from xmodal_jax.data.open import DataOptions
from xmodal_jax.inference import ContrastiveModel, DamagedIndex, Index, InputFormat, load
from xmodal_jax.inference import translators as translators_module
from xmodal_jax.inference.embed_data import describe_data, embed_data, open_for_model
from xmodal_jax.inference.translate import (
    apply_chain,
    find_candidates,
    find_chain,
    find_further_input,
    find_inputs,
    read_inputs,
    to_cell,
    write_outputs,
    write_subtitles,
)
from xmodal_jax.inference.translators import (
    TranslationOptions,
    Translator,
    VoiceOptions,
    load_translator,
    load_translators,
)
from xmodal_jax.models.seq2seq import BeamSearchConfig, JointObjective
from xmodal_jax.models.vae.multimodal_models import MVTCAEConfig
from xmodal_jax.models.vae.single_models import CVAEConfig, VAEConfig


def way(translators, source, target):
    """The only translator from one modality to another."""
    (translator,) = [t for t in translators if (t.source, t.target) == (source, target)]
    return translator


def test_a_question_about_a_picture(tmp_path):
    run = save_fusion(tmp_path / "run", ("text", "image"), ANSWERS)
    picture, question = plain_picture("red", (23, 19)), "is it red"
    picture.save(tmp_path / "photo.png")
    expected = load(run).answer(image=picture, text=question)
    given = (find_further_input(question),)
    (step,) = find_chain(
        load_translators(run, TranslationOptions(further_inputs=given)), "image", "text", further_inputs=given
    )
    _, inputs = read_inputs(find_inputs(str(tmp_path / "photo.png")), step, BadExamples())
    assert apply_chain([step], inputs)[1] == expected and step.further_modalities == ("text",)
    # The other way round.
    given = (find_further_input(str(tmp_path / "photo.png")),)
    translators = load_translators(run, TranslationOptions(further_inputs=given))
    assert find_chain(translators, "text", "text", further_inputs=given)[0].apply([question]) == expected
    assert way(load_translators(run), "image", "text").apply([]) == []
    with pytest.raises(ValueError, match="of 1 further inputs .* take none"):
        find_chain(load_translators(run), "image", "text", further_inputs=given)
    with pytest.raises(ValueError, match="translates several ways"):
        load_translator(run)


def test_answers_with_several_targets_are_one_text(tmp_path):
    run = save_fusion(tmp_path, ("image", "audio"), TASKS)
    (answer,) = way(load_translators(run), "image", "text").apply([np.zeros((11, 11, 3), np.uint8)])
    (expected,) = load(run).answer(image=np.zeros((11, 11, 3), np.uint8))
    assert answer == f"action: {expected['action']}, colour: {expected['colour']}"


@pytest.fixture
def loaded_once(tmp_path, monkeypatch):
    """A run of a multimodal VAE and its model, which translators share, so that nothing is compiled twice."""
    run = save(tmp_path / "run", MVTCAEConfig(**SMALL))
    model = load(run)
    monkeypatch.setattr(translators_module, "load", lambda path, **_: model if path == run else load(path))
    return run, model


def test_every_modality_of_a_vae_becomes_every_other(loaded_once, tmp_path):
    run, model = loaded_once
    translators = load_translators(run)
    assert len({(t.source, t.target) for t in translators}) == len(translators) == 4 * 3
    wave = np.random.default_rng(0).integers(-9000, 9000, 700).astype(np.int16)
    soundfile.write(tmp_path / "clip.wav", wave, RATE, subtype="PCM_16")
    (step,) = find_chain(translators, "audio", "vector")
    names, inputs = read_inputs(find_inputs(str(tmp_path / "clip.wav")), step, BadExamples())
    stages = apply_chain([step], inputs)
    expected = model.translate("vector", audio=(wave, RATE))
    np.testing.assert_allclose(stages[1], expected, rtol=1e-5)
    (path,) = write_outputs(tmp_path, names, stages[1], sample_rate=RATE, modality="vector")
    assert path.name == "clip.wav.csv"
    np.testing.assert_allclose(np.loadtxt(path, delimiter=","), expected[0], rtol=1e-6)
    (sound,) = way(translators, "text", "audio").apply(["red"])
    np.testing.assert_allclose(sound, model.translate("audio", text="red")[0][0], atol=1e-3)
    (picture,) = way(translators, "vector", "image").apply([np.ones(3)])
    assert picture.shape == (11, 11, 3) and picture.dtype == np.uint8
    assert to_cell(expected[0], "vector", 0) == " ".join(f"{x:.4g}" for x in expected[0])


def test_copies_are_samples_and_further_inputs_are_given(loaded_once):
    run, model = loaded_once
    given = (("vector", np.array([40.0, 2.0, 7.0])),)
    same, sampled = (
        way(
            load_translators(run, TranslationOptions(samples=samples, further_inputs=given)), "text", "image"
        ).apply(["red", "red"])
        for samples in (False, True)
    )
    np.testing.assert_array_equal(*same)
    assert (sampled[0] != sampled[1]).any()
    expected = model.translate("image", text="red", vector=np.array([40.0, 2.0, 7.0]))
    assert np.abs(np.asarray(expected[0]).astype(int) - same[0]).max() <= 1


def test_an_autoencoder_of_one_modality_reconstructs(tmp_path):
    run = save(tmp_path, VAEConfig(**SMALL), ("image",), kind="vae")
    translator = load_translator(run)
    assert (translator.source, translator.target, translator.shape) == ("image", "image", (11, 11, 3))
    picture = np.random.default_rng(0).integers(0, 256, (11, 11, 3)).astype(np.uint8)
    np.testing.assert_array_equal(
        translator.apply([picture])[0], load(run).reconstruct(image=picture)["image"][0]
    )


def test_a_conditional_autoencoder_reconstructs_a_class(tmp_path):
    names = ("cat", "dog")
    run = save(tmp_path, CVAEConfig(**SMALL), ("image",), classes=2, kind="vae", class_names=names)
    picture = np.random.default_rng(0).integers(0, 256, (11, 11, 3)).astype(np.uint8)
    outputs = []
    for name in names:
        translators = load_translators(run, TranslationOptions(class_name=name))
        (step,) = find_chain(translators, "image", "image", class_name=name)
        expected = load(run).reconstruct(image=[picture] * 2, classes=name)["image"]
        outputs.append(step.apply([picture] * 2))
        np.testing.assert_array_equal(outputs[-1], np.stack(expected))
    assert (outputs[0][0] != outputs[1][0]).any()
    for name, problem in ((None, "it needs one"), ("cow", "it has no class 'cow'")):
        with pytest.raises(ValueError, match=f"--class: .* and {problem}: choose one of cat, dog"):
            load_translators(run, TranslationOptions(class_name=name))


def test_a_class_is_of_some_run():
    with pytest.raises(ValueError, match="--class cat: none of the runs from image to text is conditional"):
        find_chain([Translator("image", "text", list, 0)], "image", "text", class_name="cat")


def test_options_of_the_voice_are_of_a_run_that_speaks():
    captioner = Translator("image", "text", list, 0)
    with pytest.raises(ValueError, match="--pitch: none of the runs from image to text synthesises speech"):
        find_chain([captioner], "image", "text", voice=VoiceOptions(pitch=2.0))
    speaker = Translator("text", "audio", list, 16_000, speakers=("anna",))
    chain = find_chain([captioner, speaker], "image", "audio", voice=VoiceOptions(pitch=2.0))
    assert chain == [captioner, speaker]


def test_a_text_that_a_recording_is_too_short_for_is_not_shown(tmp_path):
    """Its words and its text agree: those of CTC's best path."""
    example = {"audio": np.zeros((1, 1600), np.int16), "audio_mask": np.ones((1, 1600), bool)}
    run = save_text_run(tmp_path / "run", "audio", "speech_recognition", example, objective=JointObjective())
    model, sound = load(run), np.random.default_rng(0).integers(-9000, 9000, 8000).astype(np.int16)
    whole = translators_module._with_times(model, (sound, 16_000), "red green")
    assert str(whole) == "red green" and [word.text for word in whole.words] == ["red", "green"]
    cut = translators_module._with_times(model, (sound, 16_000), "red green " * 40)
    assert str(cut) == " ".join(word.text for word in cut.words) != "red green " * 40


def test_a_shared_space_finds_the_nearest_candidate(run, tmp_path):
    (tmp_path / "words.txt").write_text("\n".join(COLOURS) + "\n")
    candidates = find_candidates(tmp_path / "words.txt")
    assert candidates == ("text", list(COLOURS))
    pictures = [np.asarray(plain_picture(c)) for c in ("#00d000", "#e00000")]
    translators = load_translators(run, TranslationOptions(candidates=candidates))
    assert way(translators, "image", "text").apply(pictures) == ["green", "red"]
    for name, colour in (("a", "#00d000"), ("b", "#0000f0")):
        (tmp_path / "photos").mkdir(exist_ok=True)
        plain_picture(colour, (30, 20)).save(tmp_path / "photos" / f"{name}.png")
    candidates = find_candidates(tmp_path / "photos")
    step = way(load_translators(run, TranslationOptions(candidates=candidates)), "text", "image")
    found = step.apply(["blue", "green"])
    assert [path.name for path in found] == ["b.png", "a.png"]
    (copy, _) = write_outputs(tmp_path / "out", ["one", "two"], found, sample_rate=0, modality="image")
    assert copy.name == "one.png" and copy.read_bytes() == (tmp_path / "photos" / "b.png").read_bytes()
    assert to_cell(found[0], "image", 0).shape == (20, 30, 3)
    with pytest.raises(ValueError, match="name them by --candidates"):
        load_translators(run)
    with pytest.raises(ValueError, match="of the kind audio, which .* lacks: it has text, image"):
        load_translators(run, TranslationOptions(candidates=("audio", ["a.wav"])))


def test_candidates_are_those_of_any_text_modality_of_the_run():
    """Such as a second language: each is embedded as the modality that is asked for."""
    vectors = {"text": np.eye(2), "text_es": np.eye(2)[::-1], "image": np.eye(2)}

    def embed(**inputs):
        ((modality, values),) = inputs.items()
        return vectors[modality][: len(values)].astype(np.float32)

    model = object.__new__(ContrastiveModel)  # of which only these are needed
    model.format = InputFormat(("text", "text_es", "image"), {}, 16_000, None, DEFAULT_RESIZE, None)
    model.embed = embed
    options = TranslationOptions(candidates=("text", ["rojo", "azul"]))
    translators = translators_module._embedding_translators(model, options)
    assert [t.target for t in translators] == ["text"] * 3 + ["text_es"] * 3
    assert find_chain(translators, "image", "text")[0].apply(["a"]) == ["rojo"]
    assert find_chain(translators, "image", "text_es")[0].apply(["a"]) == ["azul"]


@pytest.mark.parametrize("form", ["folder", "npz"])
def test_an_index_holds_candidates(run, model, tmp_path, form):
    """Files are given as they are, and what is in no file as it is read from the data set."""
    if form == "folder":
        (tmp_path / "photos").mkdir()
        lines = []
        for name, colour, caption in zip("abc", ("#e00000", "#00d000", "#0000f0"), COLOURS, strict=True):
            plain_picture(colour, (12, 9)).save(tmp_path / "photos" / f"{name}.png")
            lines.append(json.dumps({"file_name": f"{name}.png", "text": caption}))
        (tmp_path / "photos" / "metadata.jsonl").write_text("\n".join(lines))
        spec = f"folder:{tmp_path / 'photos'}"
    else:
        arrays = coloured_pictures(9).arrays
        np.savez(tmp_path / "photos.npz", image=arrays["image"], caption=arrays["caption"].astype("U"))
        spec = f"npz:{tmp_path / 'photos.npz'}"
    options = DataOptions(progress=False)
    source = open_for_model(model, spec, "train", options, BadExamples())
    embed_data(
        model, source, tmp_path / "index", data=describe_data(spec, "train", options),
        bad_examples=BadExamples(), progress=False,
    )  # fmt: skip
    index = find_candidates(tmp_path / "index")
    assert isinstance(index, Index)
    translators = load_translators(run, TranslationOptions(candidates=index))
    pictures = [np.asarray(plain_picture(c)) for c in ("#00d000", "#e00000")]
    assert way(translators, "image", "text").apply(pictures) == ["green", "red"]
    found = way(translators, "text", "image").apply(["red"])[0]
    if form == "folder":
        assert found == tmp_path / "photos" / "a.png"
    else:
        assert found.shape == (8, 8, 3) and found[0, 0].argmax() == 0
    for path in tmp_path.glob("photos*"):
        path.rename(tmp_path / "gone")
    with pytest.raises(
        ValueError, match=f"is read from the data set {form}:.*photos.*, which cannot be opened"
    ):
        way(load_translators(run, TranslationOptions(candidates=index)), "image", "text").apply(pictures)
    other = dataclasses.replace(index, model="another")
    with pytest.raises(ValueError, match="made by another checkpoint"):
        load_translators(run, TranslationOptions(candidates=other))


def test_an_index_from_python_names_its_candidates(run, model, tmp_path):
    for name, colour in (("a", "#00d000"), ("b", "#0000f0")):
        plain_picture(colour, (30, 20)).save(tmp_path / f"{name}.png")
    files = [tmp_path / "a.png", tmp_path / "b.png"]
    options = TranslationOptions(candidates=model.index(images=files))
    assert way(load_translators(run, options), "text", "image").apply(["blue"]) == [files[1]]
    options = TranslationOptions(candidates=model.index(texts=list(COLOURS)))
    assert way(load_translators(run, options), "image", "text").apply([files[0]]) == ["green"]
    options = TranslationOptions(candidates=model.index(images=[plain_picture("#00d000")]))
    with pytest.raises(ValueError, match="the index has no data set to read image from"):
        way(load_translators(run, options), "text", "image").apply(["blue"])


def test_what_a_shared_space_finds_is_captioned(run, tmp_path):
    """A chain whose second run reads the file that the first one found."""
    plain_picture("#0000f0", (30, 20)).save(tmp_path / "photo.png")
    captioner = save_text_run(
        tmp_path / "captioner", "image", "captioning", {"image": np.zeros((1, 8, 8, 3), np.uint8)}
    )
    translators = [
        way(load_translators(run, TranslationOptions(candidates=find_candidates(tmp_path / "photo.png"))),
            "text", "image"),
        load_translator(captioner),
    ]  # fmt: skip
    stages = apply_chain(find_chain(translators, "text", "text"), ["blue"])
    assert stages[2] == load(captioner).caption(tmp_path / "photo.png")


def test_many_ways_are_searched_quickly():
    """Every one of eight modalities becomes every other, and the target is out of reach."""
    names = [f"image_{k}" for k in range(8)]
    translators = [Translator(a, b, list, 0) for a in names for b in names if a != b]
    with pytest.raises(ValueError, match="no way from image to text"):
        find_chain(translators, "image", "text")
    chain = find_chain([*translators, Translator("image_7", "text", list, 0)], "image", "text")
    assert [(t.source, t.target) for t in chain] == [("image_0", "image_7"), ("image_7", "text")]


def test_sounds_between_runs_are_resampled():
    heard = []
    say = Translator(
        "text", "audio", lambda x, who: [np.sin(np.arange(800) / 9) / 2], 8000, speakers=("ann",)
    )
    hear = Translator("audio", "text", lambda x: [heard.append(x[0]) or "heard"], 16_000)
    assert apply_chain([say, hear], ["a"])[2] == ["heard"]
    assert heard[0].dtype == np.int16 and len(heard[0]) == 1600
    reference = np.sin(np.arange(1600) / 18) / 2 * 32768
    assert np.abs(heard[0] - reference)[100:-100].max() < 60


def test_further_inputs_and_candidates_are_files_or_texts(tmp_path):
    (tmp_path / "one.txt").write_text("is it red\n")
    (tmp_path / "two.txt").write_text("is it red\nis it blue\n")
    (tmp_path / "empty.txt").write_text("\n")
    Image.new("RGB", (5, 7)).save(tmp_path / "a.png")
    assert (
        find_further_input(str(tmp_path / "one.txt"))
        == ("text", "is it red")
        == find_further_input("is it red")
    )
    assert find_further_input(str(tmp_path / "a.png")) == ("image", tmp_path / "a.png")
    for mistake in (tmp_path / "two.txt", tmp_path / "empty.txt"):
        with pytest.raises(ValueError, match="takes one file or text"):
            find_further_input(str(mistake))
    with pytest.raises(FileNotFoundError, match="no file .*b.png"):
        find_further_input(str(tmp_path / "b.png"))
    with pytest.raises(FileNotFoundError, match="--candidates: there is no file or folder"):
        find_candidates(tmp_path / "none")
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "index.json").write_text("{}")
    with pytest.raises(DamagedIndex, match="index.json holds other content than was written"):
        find_candidates(tmp_path / "index")
    with pytest.raises(ValueError, match="holds no text"):
        find_candidates(tmp_path / "empty.txt")


def test_long_recordings_are_transcribed_by_windows(tmp_path):
    """Those of training's length stay as they are; subtitles have the words of both."""
    example = {"audio": np.zeros((1, 1600), np.int16), "audio_mask": np.ones((1, 1600), bool)}
    run = save_text_run(tmp_path / "run", "audio", "speech_recognition", example, objective=JointObjective())
    model, rng = load(run), np.random.default_rng(0)
    for name, seconds in (("long", 9), ("short", 2)):
        wave = rng.integers(-9000, 9000, seconds * 16_000).astype(np.int16)
        soundfile.write(tmp_path / f"{name}.wav", wave, 16_000, subtype="PCM_16")
    files = [tmp_path / "long.wav", tmp_path / "short.wav"]
    expected = [model.transcribe_long(files[0])[0].text, model.transcribe(files[1])[0]]
    (step,) = find_chain(load_translators(run), "audio", "text")
    inputs = [read_inputs(find_inputs(str(file)), step, BadExamples())[1][0] for file in files]
    assert len(inputs[0]) == 9 * 16_000 and step.apply(inputs) == step.apply(files) == expected
    assert not write_subtitles(tmp_path, ["long", "short"], step.apply(inputs))

    (timed,) = find_chain(load_translators(run, TranslationOptions(times=True)), "audio", "text", times=True)
    texts = timed.apply(inputs)
    assert texts == expected and [w.text for w in texts[0].words] == expected[0].split()
    written = write_subtitles(tmp_path / "out", ["long.wav", "short.wav"], texts)
    assert [path.name for path in written[:3]] == ["long.wav.srt", "long.wav.vtt", "long.wav.json"]
    assert json.loads(written[2].read_text())["text"] == expected[0] and len(written) == 6
    # Another decoding than CTC's best path takes a recording as a whole.
    (beam,) = load_translators(run, TranslationOptions(BeamSearchConfig(beams=2)))
    assert beam.apply(inputs[:1]) == model.transcribe(files[0], BeamSearchConfig(beams=2))
    without = save_text_run(tmp_path / "attention", "audio", "speech_recognition", example)
    with pytest.raises(ValueError, match="--subtitles: .*--model.objective joint"):
        find_chain(load_translators(without, TranslationOptions(times=True)), "audio", "text", times=True)
