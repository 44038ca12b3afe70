"""Records, names and values as they lie on disk, and the examples that they become."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Protocol, runtime_checkable

import numpy as np

from data_pipelines.audio import read_sound, resample
from data_pipelines.broken import Broken, Unreadable
from data_pipelines.images import decode_image
from data_pipelines.protocol import Example
from jmm.errors import UserError

NAMED = 20
"""Fields of a record that an error lists at most."""

Record = Mapping[str, Any]
"""Names to strings, numbers, encoded pictures and sounds (bytes), arrays, and lists of such."""


@runtime_checkable
class Raw(Protocol):
    """Random access to records."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record:
        """Raises Broken for a record that cannot be read."""
        ...

    def where(self, index: int) -> str:
        """What a record is called in an error: its file, and its place there."""
        ...


@runtime_checkable
class Records(Protocol):
    """A frozen dataclass that says where records lie and in which layout."""

    def open(self) -> Raw:
        """The records, in the order in which they lie.

        Raises:
          UserError: there are none, or not in this layout.
        """
        ...


@dataclass(frozen=True)
class Fields:
    """What the fields of an example are called in a record: the first of the names that it has."""

    image: tuple[str, ...] = ("image", "jpg", "jpeg", "png", "webp")
    """An encoded picture, or one as uint8 [h, w, C]."""
    images: tuple[str, ...] = ("images",)
    """A list of such."""
    video: tuple[str, ...] = ("video",)
    """A list of frames of one size."""
    audio: tuple[str, ...] = ("audio", "wav", "flac")
    """A WAV or FLAC file."""
    audio_rate: int = 16_000
    """Samples a second to which sounds are brought."""
    caption: tuple[str, ...] = ("caption", "txt", "captions")
    """A text, or several of which the first is taken."""
    text: tuple[str, ...] = ("text",)
    """A text that is no caption; where there is a picture and no caption it is one."""
    label: tuple[str, ...] = ("label", "cls")
    """A whole number."""
    prompt: tuple[str, ...] = ("prompt", "question")
    """What is asked."""
    answer: tuple[str, ...] = ("answer",)
    """What is answered."""
    needed: tuple[str, ...] = ()
    """Fields of an example without which a record is broken."""

    def __post_init__(self) -> None:
        """Raises UserError for a needed field that no example has."""
        if unknown := set(self.needed) - set(MAKERS):
            raise UserError(f"needed fields are of {', '.join(MAKERS)}, not {', '.join(sorted(unknown))}")

    def example(self, record: Record) -> Example:
        """The fields that the record has.

        Raises:
          Broken: one that is needed is missing, or one that is there cannot be used.
        """
        found = Example()
        for field, make in MAKERS.items():
            name = next((name for name in getattr(self, field) if record.get(name) is not None), None)
            if name is not None:
                found[field] = make(self, record[name])
        if "text" in found and "image" in found and "caption" not in found:
            found["caption"] = found.pop("text")
        if missing := [field for field in self.needed if field not in found]:
            there = ", ".join(map(str, list(record)[:NAMED])) or "nothing"
            raise Broken("field", f"there is no {missing[0]}, but {there}")
        return found


@dataclass(frozen=True)
class Examples:
    """Records as examples."""

    raw: Raw
    fields: Fields

    def __len__(self) -> int:
        return len(self.raw)

    def __getitem__(self, index: int) -> Example:
        try:
            return self.fields.example(self.raw[index])
        except Broken as error:
            raise Broken(error.reason, f"{self.raw.where(index)}: {error}") from error


@dataclass(frozen=True)
class Lost:
    """A file that cannot be opened, so that no one knows how many records it has: a broken one stands for them."""

    error: Unreadable

    def __len__(self) -> int:
        return 1

    def where(self, index: int) -> str:
        """The error names it."""
        return "a whole file"

    def __getitem__(self, index: int) -> Record:
        raise Broken("shard", str(self.error))


def opened(paths: Sequence[str], open_one: Callable[[str], Raw]) -> list[Raw]:
    """Each file, or that it is lost.

    Raises:
      UserError: all of them are, or one cannot be opened for another reason.
    """
    found: list[Raw] = []
    for path in paths:
        try:
            found.append(open_one(path))
        except Unreadable as error:
            found.append(Lost(error))
    lost = [each for each in found if isinstance(each, Lost)]
    if len(lost) == len(found):
        raise lost[0].error
    return found


class Files:
    """The records of several files, one after another."""

    def __init__(self, files: Sequence[Raw]):
        self._files, self._ends = files, np.array(list(accumulate(map(len, files))))

    def __len__(self) -> int:
        return int(self._ends[-1])

    def _place(self, index: int) -> tuple[Raw, int]:
        number = int(np.searchsorted(self._ends, index, side="right"))
        return self._files[number], index - (int(self._ends[number - 1]) if number else 0)

    def __getitem__(self, index: int) -> Record:
        file, place = self._place(index)
        return file[place]

    def where(self, index: int) -> str:
        """As its file says."""
        file, place = self._place(index)
        return file.where(place)


def image_of(fields: Fields, value: Any) -> np.ndarray:
    """uint8 [h, w, C] from encoded bytes, from a map that holds them as `bytes`, or as it is.

    Raises:
      Broken: it is none of these, or no readable picture.
    """
    if isinstance(value, Mapping):
        value = value.get("bytes")
    if isinstance(value, bytes | bytearray | memoryview):
        return decode_image(bytes(value))
    if isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.ndim in (2, 3) and value.size:
        image = value[:, :, None] if value.ndim == 2 else value
        if image.shape[2] in (1, 3):
            return image
    kind = f"{value.dtype} {list(value.shape)}" if isinstance(value, np.ndarray) else type(value).__name__
    raise Broken("image", f"an image is {kind}, not encoded bytes or uint8 [h, w, 1 or 3]")


def images_of(fields: Fields, value: Any) -> list[np.ndarray]:
    """Several.

    Raises:
      Broken: they are no list, or one of them is no picture.
    """
    if not isinstance(value, list | tuple | np.ndarray):
        raise Broken("image", f"pictures are {type(value).__name__}, not a list")
    return [image_of(fields, each) for each in value]


def video_of(fields: Fields, value: Any) -> np.ndarray:
    """uint8 [T, h, w, C].

    Raises:
      Broken: there is no frame, or frames differ in size.
    """
    frames = images_of(fields, value)
    if len({frame.shape for frame in frames}) != 1:
        raise Broken("image", "the frames differ in size" if frames else "there is no frame")
    return np.stack(frames)


def sound_of(fields: Fields, value: Any) -> np.ndarray:
    """float32 [S] in [-1, 1], the mean of the channels.

    Raises:
      Broken: it is no readable sound.
    """
    if isinstance(value, Mapping):
        value = value.get("bytes")
    if not isinstance(value, bytes | bytearray | memoryview):
        raise Broken("audio", f"a sound is {type(value).__name__}, not the bytes of a WAV or FLAC file")
    try:
        sound = read_sound(bytes(value))
    except UserError as error:
        raise Broken("audio", str(error)) from error
    return resample(sound.mono, sound.rate, fields.audio_rate)


def text_of(fields: Fields, value: Any) -> str:
    """A string from UTF-8 bytes, a string, or the first of several.

    Raises:
      Broken: it is empty, or no text.
    """
    if isinstance(value, list | tuple | np.ndarray):
        value = value[0] if len(value) else ""
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError as error:
            raise Broken("caption", f"a text is not UTF-8 ({error})") from error
    if not isinstance(value, str):
        raise Broken("caption", f"a text is {type(value).__name__}")
    if not value.strip():
        raise Broken("caption", "a text is empty")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise Broken("caption", f"a text holds half a letter ({error.reason})") from error
    return value.strip()


def number_of(fields: Fields, value: Any) -> int:
    """A whole number, also one in digits.

    Raises:
      Broken: it is none.
    """
    try:
        number = int(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise Broken("field", f"a label is {value!r}, not a whole number") from error
    if (isinstance(value, float | np.floating) and number != value) or not -(1 << 31) <= number < 1 << 31:
        raise Broken("field", f"a label is {value!r}, not a whole number of 32 bits")
    return number


MAKERS: dict[str, Callable[[Fields, Any], Any]] = {
    "image": image_of,
    "images": images_of,
    "video": video_of,
    "audio": sound_of,
    "caption": text_of,
    "text": text_of,
    "label": number_of,
    "prompt": text_of,
    "answer": text_of,
}
