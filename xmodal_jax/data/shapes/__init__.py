"""Spoken Shapes, the embedded data set: scenes of coloured shapes as images, videos, captions and speech, with their
factors, questions and commands.

Nothing here loads JAX.
"""

from xmodal_jax.data.shapes.caption_changes import (
    number_captions,
    possible_values,
    replace_value,
    swap_values,
)
from xmodal_jax.data.shapes.commands import ACTIONS, scene_commands
from xmodal_jax.data.shapes.drawing import draw, scene_images, scene_videos
from xmodal_jax.data.shapes.grammar import (
    Meaning,
    ObjectMeaning,
    factor_accuracies,
    mark_wrong_words,
    match_factors,
    parse,
    realise,
    realise_all,
    scene_meanings,
)
from xmodal_jax.data.shapes.questions import ANSWERS, QUESTION_KINDS, Question, scene_questions
from xmodal_jax.data.shapes.scenes import (
    COLOURS,
    MOTIONS,
    PLACES,
    RELATIONS,
    SHAPES,
    SIZES,
    TEXTURES,
    Factors,
    sample_factors,
)
from xmodal_jax.data.shapes.source import SpokenShapes
from xmodal_jax.data.shapes.speech import (
    TRAIN_VOICES,
    UNSEEN_VOICES,
    VOICES,
    Utterances,
    Voice,
    Voices,
    add_noise,
    default_cache_dir,
    synthesize,
    synthesize_all,
    voices_of,
)
from xmodal_jax.data.shapes.tasks import Commands, GroupedByScene, Questions, SceneTask
from xmodal_jax.data.shapes.textures import texture

__all__ = [
    "ACTIONS",
    "ANSWERS",
    "COLOURS",
    "MOTIONS",
    "PLACES",
    "QUESTION_KINDS",
    "RELATIONS",
    "SHAPES",
    "SIZES",
    "TEXTURES",
    "TRAIN_VOICES",
    "UNSEEN_VOICES",
    "VOICES",
    "Commands",
    "Factors",
    "GroupedByScene",
    "Meaning",
    "ObjectMeaning",
    "Question",
    "Questions",
    "SceneTask",
    "SpokenShapes",
    "Utterances",
    "Voice",
    "Voices",
    "add_noise",
    "default_cache_dir",
    "draw",
    "factor_accuracies",
    "mark_wrong_words",
    "match_factors",
    "number_captions",
    "parse",
    "possible_values",
    "realise",
    "realise_all",
    "replace_value",
    "sample_factors",
    "scene_commands",
    "scene_images",
    "scene_meanings",
    "scene_questions",
    "scene_videos",
    "swap_values",
    "synthesize",
    "synthesize_all",
    "texture",
    "voices_of",
]
