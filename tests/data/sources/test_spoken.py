import numpy as np
import pytest

from xmodal_jax.data.bad_examples import BadExamples
from xmodal_jax.data.open import DataOptions, open_source
from xmodal_jax.data.shapes.speech import SAMPLE_RATE, TRAIN_VOICES, synthesize
from xmodal_jax.data.source import Source
from xmodal_jax.data.sources.spoken import SpokenLines
from xmodal_jax.data.splits import open_splits

WORDS = [
    f"{a} {b}" for a in ("one", "two", "three", "four", "five") for b in ("cats", "dogs", "birds", "fish")
]


@pytest.fixture
def words(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("\n\n".join([*WORDS, WORDS[0], "  "]) + "\n")
    return path


def test_lines_are_split_and_none_is_lost(words):
    train, test, voices = (SpokenLines(words, split) for split in ("train", "test", "voices"))
    assert isinstance(train, Source) and train.modalities == ("text", "audio")
    assert sorted(train.lines + test.lines) == sorted(WORDS) and test.lines == voices.lines
    assert len(train) == len(train.lines) > len(test) > 0
    words.write_text("\n".join(["another line", *WORDS[::-1]]))  # a line stays in its split
    assert set(SpokenLines(words, "test").lines) >= set(test.lines)


def test_an_example_is_its_line_in_its_voice(words, tmp_path):
    source = SpokenLines(words, size=40, max_seconds=2.0, audio_cache=tmp_path, workers=1)
    whole = source.batch(np.arange(40))
    n = len(source.lines)
    assert whole["caption"][3] == whole["caption"][3 + n] == source.lines[3]
    said = synthesize(source.lines[3], source.voices(np.array([3 + n]))[0], max_seconds=2.0)
    assert np.array_equal(whole["audio"][3 + n][whole["audio_mask"][3 + n]], said)
    assert whole["audio"].shape == (40, 2 * SAMPLE_RATE) and len(np.unique(whole["speaker"])) > 10
    assert source.speaker_names[whole["speaker"][7]] == source.voices(np.array([7]))[0].name
    some = source.batch([11, 2])
    for name, values in some.items():
        assert np.array_equal(values, whole[name][[11, 2]]), name
    with pytest.raises(IndexError, match=r"0\.\.39"):
        source.batch([40])


def test_unseen_voices_are_others(words):
    names = {voice.name for voice in TRAIN_VOICES}
    for split, heard in (("train", True), ("test", True), ("voices", False)):
        used = {voice.name for voice in SpokenLines(words, split).voices(np.arange(30))}
        assert (used <= names) == heard and bool(used & names) == heard


def test_by_its_name_on_the_command_line(words, monkeypatch, tmp_path):
    monkeypatch.setenv("XMODAL_CACHE", str(tmp_path))
    options = DataOptions(modalities=("text", "audio"), train_size=10, max_seconds=1.5)
    train = open_source(f"spoken:{words}", "train", options)
    assert len(train) == 10 and train.batch([0])["audio"].shape == (1, 24_000)
    assert set(open_splits(f"spoken:{words}", options, BadExamples("stop")).tests) == {"test", "voices"}


def test_errors_say_what_to_do(words, tmp_path):
    with pytest.raises(FileNotFoundError, match="spoken:FILE"):
        SpokenLines(tmp_path / "none.txt")
    (tmp_path / "one.txt").write_text("alone\n")
    with pytest.raises(ValueError, match="1 lines, none of which is for test"):
        SpokenLines(tmp_path / "one.txt", "test")
    with pytest.raises(ValueError, match="no image"):
        SpokenLines(words, modalities=("text", "image"))
    with pytest.raises(ValueError, match="split must be"):
        SpokenLines(words, "validation")
    with pytest.raises(ValueError, match="16000 Hz"):
        open_source(f"spoken:{words}", "train", DataOptions(sample_rate=8000))
