"""Text from pictures, videos and speech: trained captioners and speech recognisers on new data."""

from __future__ import annotations

import functools
import math
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xmodal_jax.core.alignment import ctc_alignment
from xmodal_jax.core.text_files import printable
from xmodal_jax.data.media import BLOCK_SECONDS, decode_audio_blocks, resample_blocks
from xmodal_jax.data.open import DataOptions
from xmodal_jax.evaluation.text import LanguageModelConfig, TextGenerator, read_language_model
from xmodal_jax.inference.inputs import as_list, check_sound, to_float_samples, warn_unknown_words
from xmodal_jax.inference.long_audio import (
    BLANK,
    LabelPredictor,
    Transcript,
    Word,
    WordDecoder,
    stream_words,
    transcribe_recordings,
)
from xmodal_jax.inference.model import BATCH_SIZE, RestoredRun, TrainedModel
from xmodal_jax.inference.windows import WindowLayout
from xmodal_jax.models.seq2seq import Generation, GenerationConfig, Seq2SeqConfig, make_text_network
from xmodal_jax.models.towers import encoder_of, max_audio_seconds, prefix_tokens
from xmodal_jax.train.run import from_json

WINDOWS_PER_BATCH = 16
"""Windows of long recordings that are recognised at a time."""
PAUSE_SECONDS = 1.0
"""Seconds without a label of CTC after which a word has certainly ended."""
SHORTEST_PAUSE = 0.1
"""Seconds without speech at which a recording may be cut; stops are shorter."""


class TextModel(TrainedModel):
    """A trained model that generates a text for each input of one modality, ``source``."""

    def __init__(self, run: RestoredRun):
        """See `inference.load`."""
        metadata = run.checkpoint.metadata
        super().__init__(run, (metadata["source"],))
        self.source: str = metadata["source"]
        """The modality of the inputs."""
        self.config = from_json(Seq2SeqConfig, metadata["config"]["model"])
        """Configuration of the network."""
        self._default = from_json(Generation | None, metadata["config"]["generation"])
        if (
            self.source == "audio"
        ):  # recordings may be longer than those of training, if the encoder takes them
            limit = max_audio_seconds(encoder_of(self.config, self.source))
            self.format = self.format._replace(max_seconds=None).limit_audio(limit)
        language = from_json(LanguageModelConfig | None, metadata["config"].get("language"))
        self.language = read_language_model(self.path, language)
        """The language model that the decoder's search uses; None: there is none."""
        self._generators: dict[GenerationConfig | None, TextGenerator] = {}

    def generate(self, inputs: Any, generation: GenerationConfig | None = None) -> list[str]:
        """Generates a text for each input.

        Args:
          inputs: of the modality `source`, a list or a single one.
          generation: how texts are decoded, such as ``BeamSearchConfig(beams=8)`` or ``SamplingConfig(seed=1)``; None:
            as configured in the run.
        """
        inputs = as_list(self.source, inputs)
        if not len(inputs):
            return []
        chosen = self._default if generation is None else generation
        if not isinstance(chosen, GenerationConfig | None):
            raise TypeError(
                f"generation is one of xmodal_jax.models.seq2seq, such as BeamSearchConfig(beams=8), got {chosen!r}"
            )
        if chosen not in self._generators:
            self._generators[chosen] = TextGenerator(
                self.config,
                self.source,
                self.format.transform.tokenizer,
                length=self.metadata["length"],
                decodings={"chosen": chosen},
                batch_size=BATCH_SIZE,
                few_shapes=True,
                language=self.language,
            )
        return self._generators[chosen](self.params, self.read({self.source: inputs}), "chosen")


class Captioner(TextModel):
    """A trained captioner of pictures or videos.

    ::

        load("runs/captioning").caption(["a.png", "b.png"])  # ["a red star", "two blue rings"]
    """

    kind = "captioning"
    actions = ("caption",)

    def caption(self, inputs: Any, generation: GenerationConfig | None = None) -> list[str]:
        """Captions each picture or video. ``generation``: how texts are decoded, such as ``BeamSearchConfig(beams=8)``;
        None: as configured in the run."""
        return self.generate(inputs, generation)


class SpeechRecognizer(TextModel):
    """A trained speech recogniser.

    ::

        recogniser = load("runs/speech_recognition")
        recogniser.transcribe(["a.wav", (waveform, 16000)])  # ["a red star", ...]
        (lecture,) = recogniser.transcribe_long("lecture.flac")
        lecture.words[0]  # Word(text="a", start=0.35, end=0.4, confidence=0.98)

    Attributes:
      trained_seconds: the longest recordings of training; longer ones were cut.
    """

    kind = "speech_recognition"
    actions = ("transcribe", "transcribe_long", "stream", "align")

    trained_seconds: float

    def __init__(self, run: RestoredRun):
        """See `inference.load`."""
        super().__init__(run)
        options = run.checkpoint.metadata["config"].get("input", {})
        seconds = options.get("max_seconds") or DataOptions().max_seconds
        limit = self.format.max_seconds  # that of the encoder
        self.trained_seconds = float(seconds if limit is None else min(seconds, limit))
        self._predict = jax.jit(self._best_labels)
        self._predict_chosen = jax.jit(self._chosen_labels)

    @property
    def has_times(self) -> bool:
        """Whether the run knows when words are said, and transcribes long recordings: with an objective that has
        CTC."""
        return self.config.aligns

    def transcribe(self, audio: Any, generation: GenerationConfig | None = None) -> list[str]:
        """Transcribes each recording as a whole; see `transcribe_long` for those longer than in training.

        ``generation``: how texts are decoded, such as ``BeamSearchConfig(beams=8)``; None: as configured in the run.
        """
        return self.generate(audio, generation)

    def transcribe_long(
        self,
        audio: Any,
        *,
        window_seconds: float | None = None,
        overlap_seconds: float | None = None,
        pause_seconds: float = 0.3,
    ) -> list[Transcript]:
        """Transcribes recordings of any length by windows, with the time of each word.

        Recordings are cut at pauses, where the level is that of the background (`windows.PauseDetector`), and speech
        that lasts longer than a window is covered by overlapping ones. CTC's head labels the tokens of each window; the
        labels of the middle of each window are joined and decoded once (best path). So no word is doubled or lost where
        two windows meet, if half of the overlap is context enough. Pauses are not recognised, so that no words are
        found in them. Files are read block by block, and windows are recognised in batches of one shape: the memory
        does not depend on the length of a recording. Each window is normalised by itself.

        Args:
          audio: recordings, a list or a single one.
          window_seconds: length of the windows, at most `trained_seconds`; None: that.
          overlap_seconds: what two windows share. Half of it is the context that a label has on either side at least.
            None: half a window.
          pause_seconds: silence between words that separates windows; ``math.inf``: recordings are not cut at pauses,
            and everything is covered by overlapping windows.

        Raises:
          ValueError: the run has no CTC; windows are longer than the recordings of training, or do not overlap by less
            than their length; pauses are shorter than `SHORTEST_PAUSE`; or a recording cannot be read.

        Example::

            (transcript,) = recogniser.transcribe_long("lecture.flac")
            [(word.text, word.start) for word in transcript.words]
        """
        recogniser = self._label_predictor(window_seconds, overlap_seconds, pause_seconds)
        recordings = [self._read_blocks(k, value) for k, value in enumerate(as_list(self.source, audio))]
        return transcribe_recordings(recordings, recogniser, batch_size=WINDOWS_PER_BATCH)

    def stream(
        self,
        blocks: Iterable[np.ndarray],
        sample_rate: int,
        *,
        window_seconds: float | None = None,
        overlap_seconds: float | None = None,
        pause_seconds: float = 0.3,
    ) -> Iterator[Word]:
        """The words of a recording while it is being made: those of `transcribe_long`, each as soon as it is final.

        A word is given at most `latency_seconds` after its end, plus the time that a window takes to be recognised and
        that of a block. Two windows and a block are held in memory.

        Args:
          blocks: samples as they come, in pieces of any lengths: int16, or floats in [-1, 1], ``[t]`` or ``[t,
            channels]``.
          sample_rate: samples per second.
          window_seconds, overlap_seconds, pause_seconds: see `transcribe_long`; they determine the latency
            (`latency_seconds`).

        Raises:
          ValueError: see `transcribe_long`.

        Example::

            for word in recogniser.stream(microphone_blocks(), 16_000, window_seconds=2.0):
                print(word.text, end=" ", flush=True)
        """
        recogniser = self._label_predictor(window_seconds, overlap_seconds, pause_seconds)
        if sample_rate < 1:
            raise ValueError(f"the sample rate must be positive, got {sample_rate}")
        floats = (to_float_samples(check_sound((block, sample_rate))[0]) for block in blocks)
        return stream_words(resample_blocks(floats, sample_rate, self.format.sample_rate), recogniser)

    def latency_seconds(
        self, *, window_seconds: float | None = None, overlap_seconds: float | None = None
    ) -> float:
        """How long after its end a word of `stream` is given at most.

        A word of the first window waits until this window is complete. Later ones wait for a window without half of the
        overlap, and a word ends with the next one or after `PAUSE_SECONDS`.
        """
        recogniser = self._label_predictor(window_seconds, overlap_seconds)
        layout, rate = recogniser.layout, recogniser.sample_rate
        return max(layout.window / rate, layout.wait / rate + PAUSE_SECONDS)

    def align(self, audio: Any, texts: str | Sequence[str]) -> list[Transcript]:
        """When the words of known texts are said: of a recording and its transcript, or of subtitles without times.

        The most probable path of CTC for the labels of each text (`core.alignment.ctc_alignment`) through the tokens
        that `transcribe_long` would decode. Texts are normalised as those of training were. A word that the tokenizer
        does not know is left out, with a warning. Memory and time grow with
        the product of the lengths of recording and text: recordings of minutes.

        Args:
          audio: recordings, a list or a single one.
          texts: what is said in each.

        Returns:
          The words of each text with their times and confidences; the transcript's text is the normalised one.

        Raises:
          ValueError: the numbers of recordings and texts differ; a text is too long for its recording; or as for
            `transcribe_long`.

        Example::

            (aligned,) = recogniser.align("a.wav", "a red star")
            aligned.words[1]  # Word(text="red", start=0.25, end=0.4, confidence=0.97)
        """
        recordings, texts = as_list(self.source, audio), as_list("text", texts)
        if len(recordings) != len(texts):
            raise ValueError(
                f"each recording has a text: got {len(recordings)} recordings and {len(texts)} texts"
            )
        recogniser = self._label_predictor()
        tokenize = self.format.transform.tokenize
        warn_unknown_words(texts, tokenize)
        transcripts = []
        for k, (recording, text) in enumerate(zip(recordings, texts, strict=True)):
            clean = text if tokenize.clean is None else tokenize.clean(text)
            labels = tokenize.tokenizer.text_ids(clean)
            vocabulary, indices = np.unique([BLANK, *labels], return_inverse=True)
            predict = lambda *windows, ids=vocabulary: self._predict_chosen(self.params, *windows, ids)
            aligner = recogniser._replace(predict=predict)
            parts = list(aligner.keep_tokens([self._read_blocks(k, recording)], WINDOWS_PER_BATCH))
            log_probs = np.concatenate(
                [np.zeros((0, len(vocabulary))), *(values for _, _, (values,) in parts)]
            )
            path = _best_path(log_probs, indices[1:])
            if path is None:
                raise ValueError(
                    f"recording {k}: its {len(log_probs)} tokens are too few for the {len(labels)} labels of its text"
                )
            decoder, words, first = recogniser.decoder(pause=math.inf), [], 0
            for _, window, (values,) in parts:
                part = path[first : first + len(values)]
                chosen = np.take_along_axis(values, part[:, None], axis=1)[:, 0]
                words += decoder.push(vocabulary[part], chosen, start=recogniser.first_time(window))
                first += len(values)
            transcripts.append(Transcript.from_words([*words, *decoder.finish()]))
        return transcripts

    def _label_predictor(
        self, window_seconds: float | None = None, overlap_seconds: float | None = None, pause: float = 0.3
    ) -> LabelPredictor:
        """The run as a function of windows of these lengths; see `transcribe_long`."""
        if not self.has_times:
            raise ValueError(
                f"{self.path} has no CTC, which tells when words are said: train it with --model.objective joint or "
                "ctc (transcribe takes recordings like those of training)"
            )
        window = self.trained_seconds if window_seconds is None else window_seconds
        if not 0 < window <= self.trained_seconds:
            raise ValueError(
                f"window_seconds must be above 0 and at most {self.trained_seconds:g}, the longest recordings of "
                f"training, got {window:g}"
            )
        if not pause >= SHORTEST_PAUSE:
            raise ValueError(f"pause_seconds must be at least {SHORTEST_PAUSE:g}, got {pause:g}")
        overlap = window / 2 if overlap_seconds is None else overlap_seconds
        features, rate = self.config.features, self.format.sample_rate
        stride = features.hop * encoder_of(self.config, self.source).frames_per_token
        layout = WindowLayout.from_seconds(window=window, overlap=overlap, stride=stride, sample_rate=rate)
        # Frames of a spectrogram are centred on multiples of the hop; encoders of waveforms pad nothing, so that their
        # first token is centred on the middle of the samples that it depends on.
        offset = features.window / 2 / rate if features.kind == "waveform" else 0.0
        decoder = functools.partial(
            WordDecoder, self.format.transform.tokenizer,
            token_seconds=stride / rate, pause=PAUSE_SECONDS,
        )  # fmt: skip
        predict = lambda *windows: self._predict(self.params, *windows)
        return LabelPredictor(predict, layout, decoder, rate, offset, pause)

    def _log_probs(self, params: Any, samples: Any, lengths: Any) -> tuple[jax.Array, jax.Array]:
        """``(log_probs, mask)`` of CTC's labels at each token ``[B, N, vocab]`` of waveforms int16 ``[B, T]`` of which
        ``lengths`` samples are no padding."""
        tokenizer = self.format.transform.tokenizer
        network = make_text_network(
            self.config, self.source, vocab_size=tokenizer.vocab_size, length=self.metadata["length"]
        )
        batch = {
            self.source: samples,
            f"{self.source}_mask": jnp.arange(samples.shape[1])[None, :] < lengths[:, None],
            "index": jnp.arange(len(samples), dtype=jnp.int32),
        }
        tokens = network.encode(params, batch)
        first = prefix_tokens(self.source, encoder_of(self.config, self.source))  # such as a class token
        logits = network.frame_logits(params, tokens)[:, first:]
        return jax.nn.log_softmax(logits.astype(jnp.float32)), tokens.mask[:, first:]

    def _best_labels(self, params: Any, samples: Any, lengths: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
        """``(labels, log_probs, counts)``: the most probable label of each token, and the number of tokens."""
        log_probs, mask = self._log_probs(params, samples, lengths)
        return log_probs.argmax(axis=-1), log_probs.max(axis=-1), mask.sum(axis=1)

    def _chosen_labels(
        self, params: Any, samples: Any, lengths: Any, ids: Any
    ) -> tuple[jax.Array, jax.Array]:
        """``(log_probs, counts)``: the log-probabilities of the labels ``ids`` at each token."""
        log_probs, mask = self._log_probs(params, samples, lengths)
        return log_probs[:, :, ids], mask.sum(axis=1)

    def _read_blocks(self, position: int, value: Any) -> Iterator[np.ndarray]:
        """The samples of a recording, int16 at the run's rate, block by block. ``position``: for errors."""
        rate = self.format.sample_rate
        try:
            if isinstance(value, (str, pathlib.Path, bytes)):
                yield from decode_audio_blocks(value, rate)
            else:
                waveform, source_rate = check_sound(value)
                size = int(BLOCK_SECONDS * source_rate) + 1
                parts = (to_float_samples(waveform[k : k + size]) for k in range(0, len(waveform), size))
                yield from resample_blocks(parts, source_rate, rate)
        except (ValueError, OSError) as error:
            name = f" ({printable(str(value))})" if isinstance(value, (str, pathlib.Path)) else ""
            raise ValueError(
                f"recording {position}{name}: {getattr(error, 'strerror', None) or error}"
            ) from error


_align = jax.jit(ctc_alignment)


def _best_path(log_probs: np.ndarray, labels: np.ndarray) -> np.ndarray | None:
    """The best path ``[T]`` of CTC for labels ``[L]`` through log-probabilities ``[T, vocab]``, the blank being 0;
    None: there is none."""
    # Padded to powers of two, so that few programs are compiled.
    frames, count = (1 << max(4, (n - 1).bit_length()) for n in (len(log_probs), max(1, len(labels))))
    vocab = 1 << (log_probs.shape[1] - 1).bit_length()
    padded = np.pad(log_probs, ((0, frames - len(log_probs)), (0, vocab - log_probs.shape[1])))
    aligned = _align(
        jnp.asarray(padded)[None],
        jnp.arange(frames)[None] < len(log_probs),
        jnp.asarray(np.pad(labels, (0, count - len(labels))))[None],
        jnp.arange(count)[None] < len(labels),
    )
    if not np.isfinite(aligned.log_prob[0]):
        return None
    label = np.asarray(aligned.label[0])[: len(log_probs)]
    return np.where(label < 0, BLANK, labels[label] if len(labels) else BLANK)
