import dataclasses
import pickle

import numpy as np
import pytest

from xmodal_jax.data.bad_examples import BadExamples
from xmodal_jax.data.open import DataOptions
from xmodal_jax.data.shapes.commands import ACTIONS
from xmodal_jax.data.shapes.questions import ANSWERS, QUESTION_KINDS
from xmodal_jax.data.shapes.source import SpokenShapes
from xmodal_jax.data.shapes.tasks import Commands, GroupedByScene, Questions
from xmodal_jax.data.source import Source
from xmodal_jax.data.tasks import open_task


def test_questions_are_those_of_their_scenes():
    scenes = SpokenShapes("test", size=40, modalities=("image", "audio"))
    source = Questions(scenes)
    assert isinstance(source, Source) and source.modalities == ("text", "image")
    order = np.random.default_rng(0).permutation(len(source))
    batch = source.batch(order)
    pictures = SpokenShapes("test", size=40, modalities=("image",))
    for row in range(0, len(order), 7):
        scene = int(batch["scene"][row])
        kind, answer = QUESTION_KINDS[batch["kind"][row]], ANSWERS[batch["label"][row]]
        assert (kind, batch["caption"][row], answer) in scenes.questions(scene)
        np.testing.assert_array_equal(batch["image"][row], pictures.batch([scene])["image"][0])
    assert len(source) == sum(len(scenes.questions(i)) for i in range(40))
    np.testing.assert_array_equal(source.batch(order[:3])["label"], batch["label"][:3])


def test_questions_of_motion_need_a_video():
    kinds = lambda m: set(
        Questions(SpokenShapes(size=60, modalities=m)).batch(np.arange(120))["kind"].tolist()
    )
    motion = QUESTION_KINDS.index("motion")
    assert motion not in kinds(("image",)) and motion in kinds(("video",))
    with pytest.raises(ValueError, match="questions are about pictures or videos; the scenes have text"):
        Questions(SpokenShapes(size=4, modalities=("text",)))


def test_questions_are_about_further_images_too_and_commands_refuse_them(tmp_path):
    source = Questions(SpokenShapes(size=4, modalities=("text", "image", "image_sketch")))
    assert source.modalities == ("text", "image", "image_sketch")
    batch = source.batch(np.arange(3))
    assert batch["image_sketch"].shape == batch["image"].shape
    with pytest.raises(ValueError, match="leave 'image_sketch' out of --modalities"):
        Commands(SpokenShapes(size=4, modalities=("image", "image_sketch"), audio_cache=tmp_path))


def test_commands_are_spoken_and_name_what_is_there(tmp_path):
    scenes = SpokenShapes("test", size=12, audio_cache=tmp_path, max_seconds=3.0)
    source = Commands(scenes)
    assert isinstance(source, Source)
    batch = source.batch(np.arange(len(source)))
    factors = scenes.factors(np.arange(12))
    assert len(source) == factors["num_objects"].sum()
    assert batch["audio"].shape == (len(source), 48000) and batch["audio_mask"].any(axis=1).all()
    assert not batch["audio"][~batch["audio_mask"]].any()
    for row, scene in enumerate(batch["scene"].tolist()):
        words, action, number = scenes.commands(scene)[row - np.searchsorted(batch["scene"], scene)]
        assert batch["caption"][row] == words and ACTIONS[batch["action"][row]] == action
        looks = {name: batch[name][row] for name in source.target_classes if name != "action"}
        assert looks == {
            name: factors[name][scene, number] for name in ("colour", "shape", "size", "texture")
        }
        every = {word for name in looks for word in source.target_classes[name]}
        assert {w for w in words.split() if w in every} <= {
            source.target_classes[n][k] for n, k in looks.items()
        }
    again = pickle.loads(pickle.dumps(source)).batch(np.array([2, 5]))
    np.testing.assert_array_equal(again["audio"], batch["audio"][[2, 5]])


def test_the_words_alone_often_leave_the_target_open(tmp_path):
    """No command says all of how its target looks; the scene's objects are what is left to choose from."""
    source = Commands(SpokenShapes(size=300, audio_cache=tmp_path))
    every = {
        word for name in source.target_classes if name != "action" for word in source.target_classes[name]
    }
    said = np.array([sum(word in every for word in words.split()) for words in source._words])
    assert said.min() >= 1 and said.max() <= 3


def test_noise_is_added_to_the_speech_alone(tmp_path):
    scenes = SpokenShapes("test", size=4, audio_cache=tmp_path, max_seconds=3.0)
    rows = np.arange(4)
    clean, noisy = (Commands(s).batch(rows) for s in (scenes, dataclasses.replace(scenes, noise=0.3)))
    np.testing.assert_array_equal(clean["audio_mask"], noisy["audio_mask"])
    assert not noisy["audio"][~noisy["audio_mask"]].any()
    for wave, other, mask in zip(clean["audio"], noisy["audio"], clean["audio_mask"], strict=True):
        wave, other = wave[mask].astype(np.float64), other[mask].astype(np.float64)
        level = np.std(other - wave) / np.sqrt(np.mean(wave**2))
        assert abs(level - 0.3) < 0.02
    again = Commands(dataclasses.replace(scenes, noise=0.3)).batch(rows[2:])
    np.testing.assert_array_equal(again["audio"], noisy["audio"][2:])


@pytest.mark.parametrize("task", [Questions, Commands])
def test_by_scene_holds_every_example_once(task, tmp_path):
    source = task(SpokenShapes("test", size=11, audio_cache=tmp_path, max_seconds=3.0))
    scenes = GroupedByScene(source)
    assert isinstance(scenes, Source) and len(scenes) == 11
    order = np.array([7, 0, 10, 3, 1, 2, 4, 5, 6, 8, 9])
    grouped, flat = scenes.batch(order), source.batch(np.arange(len(source)))
    most = grouped["caption"].shape[1]
    seen = 0
    for row, scene in enumerate(order):
        examples = np.flatnonzero(flat["scene"] == scene)
        seen += len(examples)
        np.testing.assert_array_equal(grouped["image"][row], flat["image"][examples[0]])
        assert grouped["scene"][row] == scene
        for name in set(grouped) - {"image", "scene"}:
            np.testing.assert_array_equal(grouped[name][row, : len(examples)], flat[name][examples])
        for name in (*source.target_classes, "kind") if task is Questions else source.target_classes:
            assert (grouped[name][row, len(examples) :] == -1).all()
        assert (grouped["caption"][row, len(examples) :] == "").all()
        if task is Commands:
            assert not grouped["audio_mask"][row, len(examples) :].any()
    assert seen == len(source) and 1 < most < len(source)


def test_validation_shares_no_scene_with_training(tmp_path):
    options = DataOptions(train_size=60)
    splits = open_task("shapes", options, BadExamples("stop"), Questions)
    assert len(splits.validation.scenes) == 6 and set(splits.tests) == {"test", "compositions"}
    both = (splits.train.task.scenes, splits.validation.scenes)
    pictures = [scenes.batch(np.arange(len(scenes)))["image"] for scenes in both]
    same = (pictures[0][:, None] == pictures[1][None]).all(axis=(2, 3, 4))
    assert not same.any()
    assert splits.train.target_classes == {"label": ANSWERS}
    with pytest.raises(ValueError, match="spoken commands are about the embedded data set"):
        open_task("npz:x.npz", options, BadExamples("stop"), Commands)
