"""Sounds from files: WAV with NumPy alone, FLAC and what else there is with soundfile; and sounds at another rate."""

import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from math import gcd
from pathlib import Path

import numpy as np
from jaxtyping import Float

from jmm.errors import UserError

PCM, FLOAT, EXTENSIBLE = 1, 3, 0xFFFE
"""The encodings of WAV that are read; the last says further on which of the others it is."""

UNKNOWN_SIZE = 0xFFFFFFFF
"""What a program writes as the size of a chunk when it cannot go back to correct it: all that follows."""

FASTEST = 1_000_000
"""Samples a second above which a header is taken for damaged."""

PIECE = 1 << 20
"""Samples that soundfile reads at once."""

HEADER = "<HHIIHH"
"""Encoding, channels, samples a second, bytes a second, bytes and bits a sample."""


@dataclass(frozen=True, eq=False)
class Sound:
    """What a file holds."""

    samples: Float[np.ndarray, "S C"]
    """float32; integers of a file are brought to [−1, 1), floats are as they stand there."""
    rate: int
    """Samples a second."""

    @property
    def mono(self) -> Float[np.ndarray, "S"]:
        """The mean of the channels."""
        return self.samples.mean(axis=1, dtype=np.float64).astype(np.float32)


def read_sound(source: bytes | str | Path) -> Sound:
    """The sound of a file, or of its bytes. WAV: integers of 8, 16, 24 and 32 bits, floats of 32 and 64 bits, any
    number of channels. All else (FLAC, Ogg …) is read by soundfile.

    Raises:
      UserError: there is no such file, it is cut off or damaged or no sound, or soundfile is missing.
    """
    name = "the sound" if isinstance(source, bytes) else str(source)
    try:
        data = source if isinstance(source, bytes) else Path(source).read_bytes()
    except OSError as error:
        raise UserError(f"{name} cannot be read: {error.strerror or error}") from error
    if data[:4] == b"RIFF" and data[8:12] == b"WAVE":
        return _wav(data, name)
    return _soundfile(data, name)


def _wav(data: bytes, name: str) -> Sound:
    header = None
    for kind, chunk, whole in _chunks(data):
        if kind == b"fmt " and len(chunk) >= struct.calcsize(HEADER):
            header = chunk
        elif kind == b"data" and header is not None:
            if not whole:
                raise UserError(f"{name} is cut off: it holds fewer samples than its header says")
            return _decode(header, chunk, name)
    raise UserError(f"{name} is cut off or damaged: a WAV file describes its samples and then holds them")


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes, bool]]:
    """The name and the content of each part of a RIFF file, and whether nothing of it is missing."""
    start = 12
    while start + 8 <= len(data):
        kind, size = struct.unpack_from("<4sI", data, start)
        content = data[start + 8 :] if size == UNKNOWN_SIZE else data[start + 8 : start + 8 + size]
        yield kind, content, size in (len(content), UNKNOWN_SIZE)
        start += 8 + size + size % 2


def _decode(header: bytes, data: bytes, name: str) -> Sound:
    encoding, channels, rate, _, block, bits = struct.unpack_from(HEADER, header)
    if encoding == EXTENSIBLE and len(header) >= 26:
        (encoding,) = struct.unpack_from("<H", header, 24)
    if (encoding, bits) not in {(PCM, 8), (PCM, 16), (PCM, 24), (PCM, 32), (FLOAT, 32), (FLOAT, 64)}:
        raise UserError(
            f"{name} is a WAV file of encoding {encoding} with {bits} bits a sample; integers of 8, 16, 24 or 32 bits "
            "and floats of 32 or 64 bits can be read"
        )
    if not 0 < rate <= FASTEST or not channels or block != channels * bits // 8:
        raise UserError(f"{name} is damaged: its header says {channels} channels of {block} bytes at {rate} Hz")
    if len(data) % block:
        raise UserError(f"{name} is cut off: its last sample lacks {block - len(data) % block} bytes")
    samples = _floats(data, bits) if encoding == FLOAT else _integers(data, bits)
    return _sound(samples.reshape(-1, channels), rate, name)


def _floats(data: bytes, bits: int) -> Float[np.ndarray, "n"]:
    # What is too large for 32 bits becomes infinite, and is told of as what is no number.
    with np.errstate(over="ignore"):
        return np.frombuffer(data, f"<f{bits // 8}").astype(np.float32)


def _integers(data: bytes, bits: int) -> Float[np.ndarray, "n"]:
    """Whole numbers over the largest of their width; those of 8 bits have no sign and 128 for silence."""
    if bits == 8:
        return (np.frombuffer(data, np.uint8).astype(np.float32) - 128) / 128
    if bits == 24:
        # The three bytes become the upper ones of four, which carry the sign.
        wide = np.zeros((len(data) // 3, 4), np.uint8)
        wide[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
        data, bits = wide.tobytes(), 32
    return (np.frombuffer(data, f"<i{bits // 8}") / float(1 << (bits - 1))).astype(np.float32)


def _soundfile(data: bytes, name: str) -> Sound:
    try:
        import soundfile
    except (ImportError, OSError):  # the latter where the package is there, and the library that it calls is not
        raise UserError(f'{name} is no WAV file; pip install "jmm[audio]" brings what reads others') from None
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            rate, count = file.samplerate, file.frames
            # By pieces: the header, for which memory would be taken at once, may be damaged.
            pieces = [np.empty((0, file.channels), np.float32)]
            while len(piece := file.read(PIECE, "float32", always_2d=True)):
                pieces.append(piece)
            samples = np.concatenate(pieces)
    except soundfile.SoundFileError as error:
        raise UserError(f"{name} holds no sound that can be read: {error}") from error
    if len(samples) < count:
        raise UserError(f"{name} is cut off: it holds fewer samples than its header says")
    return _sound(samples, rate, name)


def _sound(samples: Float[np.ndarray, "S C"], rate: int, name: str) -> Sound:
    if not np.isfinite(samples).all():
        raise UserError(f"{name} is damaged: some of its samples are no finite numbers")
    return Sound(samples, rate)


def resample(samples: Float[np.ndarray, "S *C"], rate: int, to: int) -> Float[np.ndarray, "R *C"]:
    """⌈S · to / rate⌉ samples of the same sound at `to` samples a second, by a polyphase filter: a sinc that cuts
    off at the lower of the two Nyquist frequencies, in a Kaiser window (β 5) of 20 of its zeros. Behind the ends is
    silence.

    Raises:
      UserError: a rate that is not positive.
    """
    if rate < 1 or to < 1:
        raise UserError(f"a sound needs a positive number of samples a second, not {min(rate, to)}")
    if rate == to:
        return samples
    shared = gcd(rate, to)
    # 60 MB and half a second that datasets without sounds can do without.
    from scipy.signal import resample_poly

    return resample_poly(samples, to // shared, rate // shared, axis=0, window=("kaiser", 5.0)).astype(np.float32)
