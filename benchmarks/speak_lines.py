"""Speaks words by several speech synthesizers and writes them as a folder data set, to train recognisers on.

    apt-get install flite espeak-ng mbrola mbrola-us1 mbrola-us2 mbrola-us3 mbrola-en1 libttspico-utils
    python -m benchmarks.speak_lines /usr/share/dict/american-english-small OUT --without spoken/test/metadata.jsonl
    python -m benchmarks.speak_lines /usr/share/dict/spanish OUT --language es --words-each 3 --article un una

The voices of flite, MBROLA and Pico are built from recordings of people, so that a recogniser that was trained on them
reads recordings better than one trained on eSpeak NG alone, which ``--data spoken:FILE`` uses. (MBROLA and Pico are in
Debian's section non-free.) Voices whose program or data are not installed are left out, and the script says which.

OUT holds ``train`` and ``test`` with recordings at 16 kHz and ``metadata.jsonl`` (file_name, text, speaker). A word is
in one of the two, whatever its voice. Speed and pitch vary, and silence before and after the words is up to 0.2 s.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import io
import json
import pathlib
import re
import subprocess
import tempfile
from collections.abc import Callable
from typing import Literal

import numpy as np
import soundfile
import soxr
import tyro
from tqdm import tqdm

RATE = 16_000
LETTERS = {"en": "a-z", "es": "a-zñáéíóúü"}
"""Letters of the words that the voices of a language can read."""
SILENCE = 0.01
"""Samples below this share of the largest are silence."""
ATTEMPTS = 20
"""Texts that are drawn for an utterance until its voice can speak one: MBROLA's voices lack some sounds."""


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What is spoken."""

    words: tyro.conf.Positional[pathlib.Path]
    """A text file with one word in each line. Only words of lower-case letters are taken."""
    out: tyro.conf.Positional[pathlib.Path]
    """Folder that is written."""
    language: Literal["en", "es"] = "en"
    """Language of the voices."""
    utterances: int = 16_000
    """Number of utterances for training; there are a twentieth as many for the test."""
    longest: int = 12
    """Words with more letters are left out."""
    words_each: int = 1
    """An utterance has 1 to this many words."""
    article: tuple[str, ...] = ()
    """Words of which one begins two of three utterances, such as ``un una``."""
    without: pathlib.Path | None = None
    """A metadata.jsonl; the words of its texts (``text_es`` if the language is es) are not spoken."""
    keep: pathlib.Path | None = None
    """A metadata.jsonl whose words are spoken even so: those of the training split beside ``without``."""
    seed: int = 0
    """Seed of the words, the voices and their variation."""


def _flite(voice: str, text: str, speed: float, pitch: float, path: str) -> list[str]:
    """Flite's command; its voices have one pitch each."""
    return ["flite", "-voice", voice, "--setf", f"duration_stretch={1 / speed:.3f}", "-t", text, "-o", path]


def _mbrola(voice: str, text: str, speed: float, pitch: float, path: str) -> list[str]:
    """The command of eSpeak NG with a voice of MBROLA."""
    return ["espeak-ng", "-v", f"mb-{voice}", "-s", f"{round(150 * speed)}", "-p", f"{round(50 * pitch)}",
            "-w", path, text]  # fmt: skip


def _pico(voice: str, text: str, speed: float, pitch: float, path: str) -> list[str]:
    """Pico's command; speed and pitch in percent."""
    marked = f'<speed level="{round(100 * speed)}"><pitch level="{round(100 * pitch)}">{text}</pitch></speed>'
    return ["pico2wave", "-l", voice, "-w", path, marked]


VOICES: dict[str, dict[str, tuple[Callable[..., list[str]], str, float]]] = {
    "en": {
        "awb": (_flite, "awb", 1.0), "kal": (_flite, "kal16", 0.5), "rms": (_flite, "rms", 1.0),
        "slt": (_flite, "slt", 2.0), "us1": (_mbrola, "us1", 2.0), "us2": (_mbrola, "us2", 1.0),
        "us3": (_mbrola, "us3", 1.0), "en1": (_mbrola, "en1", 0.5), "pico_us": (_pico, "en-US", 2.0),
        "pico_gb": (_pico, "en-GB", 1.0),
    },
    "es": {
        "es1": (_mbrola, "es1", 1.0), "es2": (_mbrola, "es2", 1.0), "es3": (_mbrola, "es3", 2.0),
        "mx1": (_mbrola, "mx1", 1.0), "mx2": (_mbrola, "mx2", 1.0), "pico_es": (_pico, "es-ES", 3.0),
    },
}  # fmt: skip
"""By language, each speaker's command, its voice, and how often it speaks."""


def speak(language: str, speaker: str, text: str, speed: float, pitch: float) -> np.ndarray:
    """``text`` as samples float32 ``[T]`` at 16 kHz, without silence around it.

    Raises:
      OSError: the program is not installed.
      ValueError: it said nothing, or left sounds out because the voice lacks them.
    """
    command, voice, _ = VOICES[language][speaker]
    with tempfile.NamedTemporaryFile(suffix=".wav") as file:
        done = subprocess.run(command(voice, text, speed, pitch, file.name), capture_output=True, text=True)
        content = pathlib.Path(file.name).read_bytes()
    if done.returncode or not content or "unknown" in done.stderr:
        raise ValueError(f"{speaker} could not speak {text!r}: {done.stderr.strip()}")
    samples, rate = soundfile.read(io.BytesIO(content), dtype="float32")
    heard = np.flatnonzero(np.abs(samples) > SILENCE * np.abs(samples).max(initial=0))
    if not len(heard):
        raise ValueError(f"{speaker} said nothing for {text!r}")
    return soxr.resample(samples[heard[0] : heard[-1] + 1], rate, RATE).astype(np.float32)


def read_words(args: Arguments) -> list[str]:
    """The words of the file, in its order: lower-case letters, not too long, none of those to be left out."""
    field = {"en": "text", "es": "text_es"}[args.language]

    def words_of(path: pathlib.Path | None) -> set[str]:
        """The words of the texts of a metadata.jsonl, in lower case."""
        lines = path.read_text(encoding="utf-8").splitlines() if path else ()
        return {
            word for line in lines for word in re.findall(r"\w+", (json.loads(line)[field] or "").lower())
        }

    unheard = words_of(args.without) - words_of(args.keep)
    words = dict.fromkeys(args.words.read_text(encoding="utf-8").split())
    spelled = re.compile(f"[{LETTERS[args.language]}]{{1,{args.longest}}}")
    return [word for word in words if spelled.fullmatch(word) and word not in unheard]


def installed_voices(language: str) -> dict[str, float]:
    """How often each installed voice speaks, by speaker; the others are printed."""
    weights = {}
    for speaker, (_, _, weight) in VOICES[language].items():
        try:
            speak(language, speaker, "no", 1.0, 1.0)
            weights[speaker] = weight
        except (OSError, ValueError) as error:
            print(f"left out: {speaker} ({error})")
    if not weights:
        raise SystemExit("no voice is installed; see the beginning of benchmarks/speak_lines.py")
    return weights


def draw_text(words: list[str], args: Arguments, rng: np.random.Generator) -> str:
    """One utterance: perhaps an article, and one or several words."""
    count = 1 + int(rng.integers(args.words_each))
    article = [str(rng.choice(args.article))] if args.article and rng.random() < 2 / 3 else []
    return " ".join(article + [words[i] for i in rng.integers(len(words), size=count)])


def write_split(
    folder: pathlib.Path, words: list[str], count: int, weights: dict, args: Arguments, seed
) -> None:
    """Writes ``count`` utterances of ``words``. Where a voice cannot speak a text it speaks another one, so that each
    voice speaks as often as ``weights`` say; the number of those that are left out after `ATTEMPTS` is printed."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    chances = np.array(list(weights.values())) / sum(weights.values())
    speakers = rng.choice(list(weights), size=count, p=chances)
    texts = [draw_text(words, args, rng) for _ in range(count)]
    varied = rng.uniform(0.85, 1.2, (count, 2))
    silences = rng.uniform(0, 0.2, (count, 2))

    def utter(i: int) -> dict | None:
        """Writes utterance i, and returns its line of metadata.jsonl; None: its voice can speak none of the texts."""
        text, redraw = texts[i], np.random.default_rng((*seed, i))
        for _ in range(ATTEMPTS):
            try:
                samples = speak(args.language, str(speakers[i]), text, *varied[i])
                break
            except ValueError:
                text = draw_text(words, args, redraw)
        else:
            return None
        padded = np.pad(samples * (0.7 / np.abs(samples).max()), (silences[i] * RATE).astype(int))
        name = f"{i:06d}.wav"
        soundfile.write(folder / name, padded, RATE, subtype="PCM_16")
        return {"file_name": name, "text": text, "speaker": str(speakers[i])}

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        lines = [line for line in tqdm(pool.map(utter, range(count)), total=count, desc=folder.name) if line]
    (folder / "metadata.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8"
    )
    print(
        f"{folder.name}: {len(lines)} utterances; {count - len(lines)} left out, because a voice lacks their sounds"
    )


def main(args: Arguments) -> None:
    """Writes the splits ``train`` and ``test``; a fortieth of the words is in the test."""
    words = read_words(args)
    if args.out.exists():
        raise SystemExit(f"{args.out} exists already: give another folder, or delete it")
    if len(words) < 2 or min(args.utterances, args.words_each) < 1:
        raise SystemExit(
            f"{args.words} has {len(words)} words of lower-case letters that may be spoken, and 2 are needed at least; "
            "utterances and words_each must be 1 or more"
        )
    order = np.random.default_rng(args.seed).permutation(len(words))
    shuffled = [words[i] for i in order]
    held_out = max(1, len(words) // 40)
    weights = installed_voices(args.language)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.out.parent) as folder:  # nothing is left if this is interrupted
        written = pathlib.Path(folder) / "data"
        for name, own_words, count, seed in (
            ("test", shuffled[:held_out], max(1, args.utterances // 20), 1),
            ("train", shuffled[held_out:], args.utterances, 0),
        ):
            write_split(written / name, own_words, count, weights, args, (args.seed, seed))
        written.rename(args.out)


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
