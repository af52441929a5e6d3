"""Speech of texts: a trained speech synthesiser on new data."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from xmodal_jax.data.sources.arrays import ArraySource
from xmodal_jax.evaluation.speech import PitchTracker, Synthesizer, Utterances
from xmodal_jax.inference.inputs import InputSource, as_list, positions_of, warn_unknown_words, warn_user
from xmodal_jax.inference.model import BATCH_SIZE, RestoredRun, TrainedModel
from xmodal_jax.models.speech import SEMITONE, SpeechConfig
from xmodal_jax.models.vocoder import spectrogram_differences
from xmodal_jax.train.run import from_json

LARGEST_PITCH = 24.0
"""Largest shift of the pitch up or down, in semitones."""
LARGEST_ENERGY = 40.0
"""Largest shift of the energy up or down, in decibels."""
LENGTH_FACTORS = (1, 2, 4, 8)
"""Lengths that speech is synthesised with, in lengths of the longest speech of training: a compiled program each."""


class SpeechSynthesizer(TrainedModel):
    """A trained speech synthesiser.

    ::

        speaker = load("runs/speech_synthesis")
        ((waveform, rate),) = speaker.synthesize("a red star", pitch=3.0)
        ((waveform, rate),) = speaker.convert("recording.wav", "a red star", speaker.voices[1])
    """

    kind = "speech_synthesis"
    actions = ("synthesize", "convert")

    def __init__(self, run: RestoredRun):
        """See `inference.load`."""
        super().__init__(run, ("text",))
        # Runs of earlier versions know neither pitch nor energy.
        without_prosody = {"pitch": False, "energy": False}
        self.config = from_json(SpeechConfig, without_prosody | self.metadata["config"]["model"])
        """Configuration of the network and of its spectrogram."""
        self.voices: tuple[str, ...] = tuple(self.metadata["speakers"])
        """The names of the voices."""
        self.sample_rate: int = self.config.features.sample_rate
        """Samples per second of the speech."""
        self._synthesizers: dict[int, Synthesizer] = {}
        """Compiled synthesisers by their largest number of frames."""

    def describe(self) -> str:
        """What the run is, what it takes and what it gives, as text."""
        return f"{super().describe()}\nvoices: {', '.join(self.voices)}"

    def synthesize(
        self,
        texts: Any,
        voices: str | Sequence[str] | None = None,
        *,
        speed: Any = 1.0,
        pitch: Any = 0.0,
        energy: Any = 0.0,
        vocoder: Any = None,
    ) -> list[tuple[np.ndarray, int]]:
        """Speech of each text: pairs of a waveform, float32 ``[T]`` in [-1, 1], and its samples per second.

        Speech may be longer than that of training, up to 8 times, for example if it is slow; what is longer still is
        cut, with a warning.

        Args:
          texts: the texts.
          voices: the name of one voice, or of a voice for each text; None: the first voice.
          speed: factor of the speed of speech, or one for each text; above 1 it is faster.
          pitch: semitones by which the pitch is higher (or lower, if negative), up to 24, or a number for each text.
            Exact with a vocoder, within its range of pitches (``vocoder.config.pitch_range``); Griffin-Lim follows it
            poorly.
          energy: decibels by which the speech is louder (or softer, if negative), up to 40, or a number for each text.
            The waveform is scaled down where it exceeds the range [-1, 1].
          vocoder: a trained vocoder of the same spectrogram (`load_vocoder`), which makes the waveforms; None:
            Griffin-Lim.

        Raises:
          ValueError: a text has more tokens than the run was trained for, there is no such voice, the speed is not
            positive, pitch or energy are out of range, the run was trained without them, or the vocoder is for another
            spectrogram.
        """
        texts = as_list("text", texts)
        speakers = self._voice_positions(voices, len(texts))
        controls = self._controls(len(texts), speed=speed, pitch=pitch, energy=energy)
        self._check_vocoder(vocoder)
        if not texts:
            return []
        captions = self.read({"text": texts}).batch(np.arange(len(texts)))["caption"]
        self._check_lengths(captions.tolist())
        warn_unknown_words(captions.tolist(), self.format.transform.tokenize)
        source = ArraySource({"caption": captions, "speaker": speakers, **controls})
        return self._with_rate(self._speak("synthesize", source, vocoder))

    def convert(
        self,
        recordings: Any,
        texts: Any,
        voices: str | Sequence[str] | None = None,
        *,
        speed: Any = 1.0,
        pitch: Any = 0.0,
        energy: Any = 0.0,
        vocoder: Any = None,
    ) -> list[tuple[np.ndarray, int]]:
        """Each recording spoken again in another voice, with the duration, the pitch and the energy of each token as in
        the recording.

        The learned alignment finds the text in the recording. The pitch is moved by the ratio of the mean pitch of the
        voice to that of the recording, over voiced frames; it is not moved where the run does not know the pitch of its
        voices.

        Args:
          recordings: paths, bytes of files, or pairs (waveform, samples per second).
          texts: what each recording says.
          voices: the name of one voice, or of a voice for each recording; None: the first voice.
          speed, pitch, energy, vocoder: as of `synthesize`.

        Returns:
          Pairs of a waveform, float32 ``[T]`` in [-1, 1], and its samples per second.

        Raises:
          ValueError: as of `synthesize`; the numbers of recordings and texts differ, or a recording is longer than
            those of training or shorter than its text, whose tokens last a frame at least.
        """
        recordings, texts = as_list("audio", recordings), as_list("text", texts)
        if len(recordings) != len(texts):
            raise ValueError(f"there are {len(recordings)} recordings and {len(texts)} texts")
        speakers = self._voice_positions(voices, len(texts))
        controls = self._controls(len(texts), speed=speed, pitch=pitch, energy=energy)
        self._check_vocoder(vocoder)
        if not texts:
            return []
        format = self.format._replace(modalities=("text", "audio"), max_seconds=None)
        batch = InputSource({"text": texts, "audio": recordings}, format).batch(np.arange(len(texts)))
        self._check_lengths(batch["caption"].tolist())
        audio, mask = self._pad_recordings(batch["audio"], batch["audio_mask"])
        if self.config.pitch and self.config.statistics.voice_pitch:
            controls["pitch_shift"] += self._pitch_shifts(audio, mask, speakers)
        fields = {"caption": batch["caption"], "audio": audio, "audio_mask": mask, "speaker": speakers}
        warn_unknown_words(fields["caption"].tolist(), self.format.transform.tokenize)
        speech = self._speak("convert", ArraySource(fields | controls), vocoder)
        for index, wave in enumerate(speech.waves):
            if not len(wave):
                raise ValueError(f"audio {index} is too short for its text: {batch['caption'][index]!r}")
        return self._with_rate(speech)

    def _speak(self, action: str, source: ArraySource, vocoder: Any) -> Utterances:
        """The utterances of all examples, by the action "synthesize" or "convert" of `Synthesizer`.

        Those that are longer than the speech of training are computed again with more frames, so that none is cut;
        warns of one that is longer than eight times that.
        """
        longest = self.metadata["frames"]
        speech = self._synthesize_frames(action, source, longest, vocoder)
        for factor in LENGTH_FACTORS[1:]:
            cut = np.flatnonzero(_total_frames(speech) > longest * factor // 2)
            if not len(cut):
                return speech
            rows = ArraySource({name: values[cut] for name, values in source.arrays.items()})
            speech = _replace(speech, cut, self._synthesize_frames(action, rows, longest * factor, vocoder))
        for index in np.flatnonzero(_total_frames(speech) > longest * LENGTH_FACTORS[-1])[:1]:
            seconds = longest * LENGTH_FACTORS[-1] * self.config.features.hop / self.sample_rate
            warn_user(
                f"the speech of text {index} is longer than {seconds:.1f} s, {LENGTH_FACTORS[-1]} times the longest of "
                "training, and is cut there: raise the speed, or split the text"
            )
        return speech

    def _synthesize_frames(self, action: str, source: ArraySource, frames: int, vocoder: Any) -> Utterances:
        """The utterances of all examples, cut at ``frames``; the program of each number of frames is kept."""
        if frames not in self._synthesizers:
            self._synthesizers[frames] = Synthesizer(
                self.config, self.format.transform.tokenize, frames=frames, speakers=len(self.voices),
                batch_size=BATCH_SIZE, few_shapes=True,
            )  # fmt: skip
        synthesizer = self._synthesizers[frames]
        function = {"synthesize": synthesizer, "convert": synthesizer.convert}[action]
        return function(self.params, source, vocoder=vocoder)

    def _with_rate(self, speech: Utterances) -> list[tuple[np.ndarray, int]]:
        """Pairs of each waveform and its samples per second."""
        return [(wave, self.sample_rate) for wave in speech.waves]

    def _voice_positions(self, voices: str | Sequence[str] | None, count: int) -> np.ndarray:
        """The number of the voice of each of ``count`` texts; raises ValueError for unknown or too few voices."""
        is_single = voices is None or isinstance(voices, str)
        names = [voices or self.voices[0]] * count if is_single else list(voices)
        if len(names) != count:
            raise ValueError(f"there are {count} texts and {len(names)} voices")
        return positions_of(names, self.voices, "voice", "voices")

    def _controls(self, count: int, **values: Any) -> dict[str, np.ndarray]:
        """The fields of a batch of ``count`` texts that control its synthesis; raises ValueError for unusable values.

        ``values``: speed, pitch and energy, each a number or one for each text.
        """
        numbers = {name: _one_for_each(name, value, count) for name, value in values.items()}
        speed = numbers["speed"]
        if not ((speed > 0) & np.isfinite(speed)).all():
            raise ValueError(f"speed must be positive and finite, got {values['speed']}")
        controls = {"speed": speed}
        for name, largest, unit in (
            ("pitch", LARGEST_PITCH, "semitones"),
            ("energy", LARGEST_ENERGY, "decibels"),
        ):
            shift = numbers[name]
            if not (np.abs(shift) <= largest).all():
                raise ValueError(f"{name} must lie in -{largest:g}..{largest:g} {unit}, got {values[name]}")
            if name in self.config.prosody:
                controls[f"{name}_shift"] = shift
            elif shift.any():
                raise ValueError(
                    f"{self.path} was trained without {name}, so it cannot be changed: leave {name} at 0, or "
                    f"train a run with --model.{name}"
                )
        return controls

    def _pad_recordings(self, audio: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Recordings and their masks ``[N, T]``, padded to the length of training, so that few programs are compiled;
        raises ValueError for a longer one."""
        longest = (self.metadata["frames"] - 1) * self.config.features.hop
        lengths = mask.sum(axis=1)
        if (lengths > longest).any():
            index, rate = int((lengths > longest).argmax()), self.sample_rate
            raise ValueError(
                f"audio {index} has {lengths[index] / rate:.2f} s, {self.path} speaks up to {longest / rate:.2f} s"
            )
        width = [(0, 0), (0, max(longest - audio.shape[1], 0))]
        return np.pad(audio, width)[:, :longest], np.pad(mask, width)[:, :longest]

    def _pitch_shifts(self, audio: np.ndarray, mask: np.ndarray, speakers: np.ndarray) -> np.ndarray:
        """The semitones ``[N]`` from the mean pitch of each recording to that of its new voice; 0 where the recording
        has no voiced frame."""
        waves = [wave[valid] for wave, valid in zip(audio, mask, strict=True)]
        means = np.array(self.config.statistics.voice_pitch)[speakers]
        shifts = []
        for frequency, mean in zip(self._track_pitch(waves), means, strict=True):
            voiced = frequency[frequency > 0]
            shifts.append((mean - np.log(voiced).mean()) / SEMITONE if len(voiced) else 0.0)
        return np.array(shifts, np.float32)

    @functools.cached_property
    def _track_pitch(self) -> PitchTracker:
        """The pitch of recordings."""
        return PitchTracker(self.config)

    def _check_vocoder(self, vocoder: Any) -> None:
        """Raises ValueError for what is no vocoder, and for a vocoder of another spectrogram."""
        config = self.config
        if vocoder is None:
            return
        if not hasattr(vocoder, "decode"):
            raise ValueError(f"vocoder is a loaded one, load_vocoder(RUN, features), got {vocoder!r}")
        if differences := spectrogram_differences(vocoder.config, config.features, config.floor):
            raise ValueError(f"the vocoder is for other spectrograms, with {', '.join(differences)}")

    def _check_lengths(self, texts: Sequence[str]) -> None:
        """Raises ValueError for a text that is too long to be spoken whole."""
        tokenize = self.format.transform.tokenize
        cleaned = [text if tokenize.clean is None else tokenize.clean(text) for text in texts]
        for text, tokens in zip(texts, tokenize.tokenizer.lengths(cleaned), strict=True):
            if tokens > tokenize.max_length:
                raise ValueError(
                    f"{self.path} speaks texts of up to {tokenize.max_length} tokens, this one has {tokens}: {text!r}"
                )


def _total_frames(speech: Utterances) -> np.ndarray:
    """The number of frames ``[N]`` that each utterance has if it is not cut."""
    return np.array([durations.sum() for durations in speech.durations])


def _replace(speech: Utterances, rows: np.ndarray, replacements: Utterances) -> Utterances:
    """The utterances with ``replacements`` in place of those at ``rows``."""
    fields = {}
    for name, old in speech._asdict().items():
        if old is not None:
            fields[name] = list(old)
            for row, new in zip(rows.tolist(), getattr(replacements, name), strict=True):
                fields[name][row] = new
    return speech._replace(**fields)


def _one_for_each(name: str, value: Any, count: int) -> np.ndarray:
    """A control of ``count`` texts, float32 ``[count]``, from one number or one for each text."""
    try:
        numbers = np.asarray(value, np.float32)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} is a number or a list of numbers, got {value!r}") from error
    if numbers.shape not in ((), (count,)):
        raise ValueError(
            f"{name} is one number or one for each of {count} texts, got the shape {numbers.shape}"
        )
    return np.broadcast_to(numbers, (count,)).copy()
