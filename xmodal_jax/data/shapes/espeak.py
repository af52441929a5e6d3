"""The program of a speech process: reads requests as JSON lines from stdin and writes samples to stdout.

It is started by path and imports nothing of the package, so that it starts fast and never loads JAX.

eSpeak NG keeps state from one utterance to the next (phases, flutter, random numbers), and even terminating and
initialising it again does not clear this state. So each utterance is spoken in a fork of a process that has only
initialised the library, and does not depend on earlier utterances. That process stays small, without NumPy, because
forking a large process takes longer; its parent process resamples and trims the speech.

A response is an int32 n and n bytes of int16 samples, or an int32 -k and an error message of k bytes.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import sys

import espeakng_loader

SAMPLE_RATE = 16_000
PEAK = 26_000  # of 32767, to leave headroom for added noise
_RATE, _VOLUME, _PITCH, _RANGE = 1, 2, 3, 4
_SYNCHRONOUS, _DONT_EXIT, _UTF8 = 2, 0x8000, 1
_MAX_RATE = 450  # words per minute, the fastest that eSpeak NG speaks

_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)


class _Engine:
    """The eSpeak NG library, initialised; ``rate`` is its sample rate in Hz.

    ``chunks`` collects the samples that the library passes to the callback `_receive` while it speaks.
    """

    def __init__(self):
        """Loads and initialises eSpeak NG; ``rate`` is its sample rate in Hz."""
        self.lib = lib = ctypes.CDLL(espeakng_loader.get_library_path())
        self.chunks: list[bytes] = []
        self.callback = _Callback(self._receive)
        data = os.fsencode(espeakng_loader.get_data_path())
        self.rate = lib.espeak_Initialize(_SYNCHRONOUS, 0, data, _DONT_EXIT)
        if self.rate <= 0:
            raise RuntimeError("eSpeak NG could not be initialised")
        lib.espeak_SetSynthCallback(self.callback)
        lib.espeak_SetVoiceByName(b"en-us")  # loads the dictionary once, for all forks
        # Fixed seeds of eSpeak's random numbers and of the C library's, so that each utterance is reproducible.
        lib.espeak_ng_SetRandSeed(ctypes.c_long(1))
        ctypes.CDLL(None).srand(1)

    def _receive(self, samples, count, events):
        """eSpeak NG's callback: keeps ``count`` int16 samples; 0 means "go on"."""
        if samples and count > 0:
            self.chunks.append(ctypes.string_at(samples, 2 * count))
        return 0

    def _speak(self, text: str, voice: str, rate: int, pitch: int, pitch_range: int) -> bytes:
        """Int16 samples of the text at the engine's sample rate; ``rate`` in words per minute, pitches in 0..100."""
        lib, data = self.lib, text.encode() + b"\0"
        if lib.espeak_SetVoiceByName(voice.encode()) != 0:
            raise ValueError(f"eSpeak NG knows no voice {voice!r}")
        for parameter, value in ((_RATE, rate), (_VOLUME, 100), (_PITCH, pitch), (_RANGE, pitch_range)):
            lib.espeak_SetParameter(parameter, value, 0)
        # The whole text, from position 0; the call returns when all samples have been passed to `_receive`.
        size, zero = ctypes.c_size_t(len(data)), ctypes.c_uint(0)
        if lib.espeak_Synth(data, size, zero, 0, zero, ctypes.c_uint(_UTF8), None, None) != 0:
            raise RuntimeError(f"eSpeak NG could not speak {text!r}")
        return b"".join(self.chunks)

    def speak(self, *args) -> bytes:
        """Int16 samples at the engine's sample rate; ``args`` are those of `_speak`.

        The text is spoken in a fork of this process, so that it does not change the engine's state. The fork sends "+"
        and the samples through a pipe, or "-" and an error message.
        """
        read, write = os.pipe()
        child = os.fork()
        if child == 0:  # this is the fork
            status = 1
            try:
                os.close(read)
                with os.fdopen(write, "wb") as pipe:
                    try:
                        pipe.write(b"+" + self._speak(*args))
                    except Exception as error:
                        pipe.write(b"-" + str(error).encode())
                status = 0
            finally:
                os._exit(status)
        os.close(write)
        with os.fdopen(read, "rb") as pipe:
            response = pipe.read()
        _, status = os.waitpid(child, 0)
        if status != 0 or response[:1] != b"+":
            raise RuntimeError(response[1:].decode() or f"speaking ended with status {status}")
        return response[1:]


def _respond(out, make) -> bool:
    """Calls ``make()`` and writes a response with the bytes that it returns, or with the message of the error that it
    raises; returns whether it succeeded. The module's docstring has the format."""
    try:
        succeeded, content = True, make()
    except Exception as error:
        succeeded, content = False, (str(error) or repr(error)).encode()
    size = len(content) if succeeded else -len(content)
    out.write(size.to_bytes(4, "little", signed=True) + content)
    out.flush()
    return succeeded


class _EngineProcess:
    """An `_Engine` in a forked process, which must be started before anything large is imported."""

    def __init__(self):
        """Forks the process, connected by one pipe for requests and one for responses, and waits for its sample rate in
        Hz (``rate``)."""
        requests, to_engine = os.pipe()
        responses, from_engine = os.pipe()
        if os.fork() == 0:  # this is the engine's process
            try:
                os.close(to_engine)
                os.close(responses)
                with os.fdopen(requests, "rb") as lines, os.fdopen(from_engine, "wb") as out:
                    self._serve(lines, out)
            finally:
                os._exit(0)
        os.close(requests)
        os.close(from_engine)
        self.requests, self.responses = os.fdopen(to_engine, "wb"), os.fdopen(responses, "rb")
        self.rate = self._receive(int)

    @staticmethod
    def _serve(lines, out) -> None:
        """Starts an engine, responds with its sample rate, and then responds to each request in ``lines``.

        ``lines``: a file with a request per line, the arguments of `_Engine.speak` in JSON. ``out``: the file that the
        responses are written to.
        """
        engine = None

        def start() -> bytes:
            """Starts the engine; the bytes of the response are its sample rate."""
            nonlocal engine
            engine = _Engine()
            return str(engine.rate).encode()

        if _respond(out, start):
            for line in lines:
                _respond(out, lambda line=line: engine.speak(*json.loads(line)))

    def _receive(self, kind: type):
        """The content of the next response as ``kind``, bytes or int; raises RuntimeError if it is an error."""
        header = self.responses.read(4)
        count = int.from_bytes(header, "little", signed=True)
        content = self.responses.read(abs(count))
        if len(header) < 4 or len(content) < abs(count):
            raise RuntimeError("the eSpeak NG process ended")
        if count < 0:
            raise RuntimeError(content.decode())
        return kind(content)

    def speak(self, *args) -> bytes:
        """Int16 samples at the engine's sample rate; ``args`` are those of `_Engine._speak`."""
        self.requests.write(json.dumps(args).encode() + b"\n")
        self.requests.flush()
        return self._receive(bytes)


def _normalise(samples: bytes, rate: int):
    """Int16 samples at 16 kHz from int16 samples at ``rate`` Hz, peak-normalised.

    Silence at both ends (below 1% of the peak) is cut, except for 10 ms.
    """
    import numpy as np  # here: see the module's docstring
    import soxr

    wave = np.frombuffer(samples, np.int16).astype(np.float32)
    wave = soxr.resample(wave, rate, SAMPLE_RATE, quality="HQ")
    peak = np.abs(wave).max(initial=0.0)
    loud = np.flatnonzero(np.abs(wave) > 0.01 * peak)
    if len(loud) == 0:
        return np.zeros(0, np.int16)
    margin = SAMPLE_RATE // 100  # 10 ms
    wave = wave[max(0, loud[0] - margin) : loud[-1] + 1 + margin]
    return np.rint(wave * (PEAK / peak)).astype(np.int16)


def utter(engine: _EngineProcess, request: dict):
    """Int16 samples at 16 kHz for a request (see `speech._request`); an utterance longer than ``max_samples`` is spoken
    again faster, until it fits."""
    rate, limit = request["rate"], request["max_samples"]
    while True:
        args = request["text"], request["voice"], rate, request["pitch"], request["pitch_range"]
        wave = _normalise(engine.speak(*args), engine.rate)
        if limit is None or len(wave) <= limit:
            return wave
        if rate >= _MAX_RATE:
            raise ValueError(
                f"{request['text']!r} takes {len(wave) / SAMPLE_RATE:.2f} s at the fastest rate, over the "
                f"limit of {limit / SAMPLE_RATE:.2f} s; raise max_seconds"
            )
        # Speak faster by the ratio of the lengths, but by 3% at least, so that a few attempts are enough.
        rate = min(_MAX_RATE, math.ceil(rate * max(1.03, len(wave) / limit)))


def main() -> None:
    """Responds to each request of stdin on stdout."""
    engine, out = _EngineProcess(), sys.stdout.buffer
    for line in sys.stdin:
        _respond(out, lambda line=line: utter(engine, json.loads(line)).tobytes())


if __name__ == "__main__":
    main()
