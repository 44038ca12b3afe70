"""From pictures and strings to the arrays of a batch. The same for training, evaluation and a user's own files."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from data_pipelines.captions import TEMPLATE
from data_pipelines.images import Resample, Resize, resize, to_channels
from data_pipelines.tokenizer import ByteTokenizer, Tokenizer
from jmm.errors import UserError

Arrays = dict[str, np.ndarray]

PICTURES = ("image", "video")
"""Fields whose bytes are normalised."""

Padding = Literal["masked", "counted", "longest"]


def evenly(total: int, count: int) -> list[int]:
    """The middles of `count` equal parts of so many: neither the first nor the last counts more than others."""
    return ((np.arange(count) + 0.5) * total / count).astype(int).tolist()


@dataclass(frozen=True)
class Preprocess:
    """Size and normalisation of images, tokenizer and length of texts."""

    image_size: tuple[int, int] = (224, 224)
    """Height and width."""
    channels: int = 3
    """1 for grey, 3 for RGB."""
    resize: Resize | int = "crop"
    """crop: keep the proportions and cut the middle out; squash the whole picture; none: cut the middle out as it is; a
    number: bring the shorter edge to that length first."""
    resample: Resample = "bicubic"
    """The filter of the resizing."""
    scale: float = 1 / 255
    """What bytes are multiplied by."""
    mean: tuple[float, ...] = (0.5,)
    """Subtracted from scaled pixels; one value, or one a channel."""
    std: tuple[float, ...] = (0.5,)
    """What pixels are then divided by."""
    audio_length: int = 0
    """Samples of a sound: the middle of a longer one, silence behind a shorter; 0: sounds are not read."""
    video_frames: int = 0
    """Frames of a video, evenly spaced over it; a shorter one repeats some; 0: videos are not read."""
    image_optional: bool = False
    """Some examples have no picture: their pixels are zeros, and `image_mask` says so."""
    text_length: int = 77
    """Tokens a text, marks of begin and end included."""
    target_length: int | None = None
    """Tokens of an answer, its end included, where it is a field of its own, `target`; None: it follows its prompt in
    `text`, and `prefix_length` says where it begins."""
    padding: Padding = "masked"
    """A shorter text is padded to `text_length` and its mask leaves the padding out; counted: the mask is true there as
    well (SigLIP); longest: a list of texts is padded to its longest only, rounded up to a power of two."""
    tokenizer: Tokenizer = field(default_factory=ByteTokenizer)
    """Strings to ids."""
    caption: str = TEMPLATE
    """What the model is asked of a picture, {} being the label, where no template is given."""
    prompt: str = "{}"
    """What stands around every prompt, {} being the prompt (PaliGemma: a mark before it, a new line behind it)."""
    describe: str = ""
    """The prompt that asks for a caption."""
    ask: str = "{}"
    """The prompt that asks a question, {} being the question."""

    def fit(self, image: Shaped[np.ndarray, "h w c"]) -> Shaped[np.ndarray, "H W C"]:
        """A uint8 picture of any size, brought to `image_size` and `channels`, still uint8.

        Raises:
          ValueError: it is no uint8 [h, w, 1] or [h, w, 3].
        """
        if image.ndim != 3 or image.shape[2] not in (1, 3) or image.dtype != np.uint8:
            raise ValueError(f"a picture must be uint8 [h, w, 1] or [h, w, 3], not {image.dtype} {list(image.shape)}")
        if image.shape == (*self.image_size, self.channels) and isinstance(self.resize, str):
            return image
        return resize(to_channels(image, self.channels), self.image_size, self.resize, self.resample)

    def sized(self, image_size: tuple[int, int]) -> "Preprocess":
        """The same for images of another size: as much is cut off as before."""
        ratio = min(image_size) / min(self.image_size)
        how = self.resize if isinstance(self.resize, str) else round(self.resize * ratio)
        return replace(self, image_size=image_size, resize=how)

    def frames(self, video: Sequence[np.ndarray] | np.ndarray) -> list[np.ndarray]:
        """`video_frames` of a video: the middles of equal parts."""
        return [video[place] for place in evenly(len(video), self.video_frames)]

    def clip(self, sound: Float[np.ndarray, "S"], start: int | None = None) -> Float[np.ndarray, "L"]:
        """`audio_length` samples from `start` on, or the middle ones; silence behind the end."""
        length = self.audio_length
        start = max(len(sound) - length, 0) // 2 if start is None else start
        part = sound[start : start + length]
        return np.pad(part, (0, length - len(part)))

    def normalise(
        self, image: Shaped[np.ndarray, "*T H W C"], out: Float[np.ndarray, "*T H W C"] | None = None
    ) -> Float[np.ndarray, "*T H W C"]:
        """Pixels 0–255 to float32 (x · scale − mean) / std, in `out` where that is given."""
        pixels = np.empty(image.shape, np.float32) if out is None else out
        pixels[:] = image
        # In place and by whole rows: new arrays, and rows of one pixel's channels, took four times as long.
        rows = pixels.reshape(*image.shape[:-2], -1)
        rows /= np.float32(1 / self.scale)
        for apply, values in ((np.subtract, self.mean), (np.divide, self.std)):
            row = values[0] if len(values) == 1 else np.tile(np.asarray(values, np.float32), image.shape[-2])
            apply(rows, np.asarray(row, np.float32), out=rows)
        return pixels

    @lru_cache(maxsize=1 << 14)  # noqa: B019  a handful of these live as long as the process; captions come back each epoch
    def text(self, text: str) -> tuple[Int[np.ndarray, "L"], Bool[np.ndarray, "L"]]:
        """Ids padded to `text_length`, and true where a token is real (`counted`: everywhere)."""
        ids = self.tokenizer.encode(text, self.text_length)
        padded, mask = self._padded(ids, self.text_length)
        padded.setflags(write=False)
        mask.setflags(write=False)
        return padded, mask

    @lru_cache(maxsize=1 << 14)  # noqa: B019  as above
    def pair(self, prompt: str, answer: str) -> Arrays:
        """A prompt and its answer as fields of a batch: `text` and `target`, each with its mask, or, without a
        `target_length`, both in `text`, of which `prefix_length` tokens are the prompt and the marks before it. Where
        the two are longer than that the end of the prompt is left out."""
        prompt = self._asked(prompt)
        if self.target_length is not None:
            fields = (*self.text(prompt), *self._padded(self._answer(answer, self.target_length), self.target_length))
            return dict(zip(("text", "text_mask", "target", "target_mask"), fields, strict=True))
        written = self._answer(answer, self.text_length - len(self._marks))
        ids = self.tokenizer.encode(prompt, self.text_length)
        before = self._without_end(ids)[: self.text_length - len(written)]
        text, mask = self._padded(before + written, self.text_length)
        return {"text": text, "text_mask": mask, "prefix_length": np.asarray(len(before), np.int32)}

    def _asked(self, prompt: str) -> str:
        return self.prompt.replace("{}", prompt, 1)

    def _answer(self, answer: str, length: int) -> list[int]:
        """At most `length` ids: those of the answer, and its end, which not every tokenizer puts there."""
        marks, end = self._marks, self.tokenizer.end_id
        ids = self.tokenizer.encode(answer, length + len(marks))[len(marks) :]
        return ids if end is None or ids[-1:] == [end] else [*ids[: length - 1], end]

    @cached_property
    def _marks(self) -> list[int]:
        """What the tokenizer puts before every text."""
        return self._without_end(self.tokenizer.encode("", self.text_length))

    def _without_end(self, ids: list[int]) -> list[int]:
        return ids[:-1] if ids and ids[-1] == self.tokenizer.end_id else ids

    def arrays(self, example: dict[str, Any]) -> Arrays:
        """One example, its image already fitted, to the fields of a batch."""
        return {name: np.asarray(rows[0]) for name, rows in self.batch([self.fields(example)]).items()}

    def batch(self, examples: Sequence[Arrays]) -> Arrays:
        """Examples of which `fields` has made arrays.

        Raises:
          UserError: they have not all the same fields, in the same shapes.
        """
        some = {name: array for each in examples for name, array in each.items()}
        if self.image_optional:
            some.setdefault("image", np.empty((*self.image_size, self.channels)))
        types = {name: np.float32 if name in PICTURES else array.dtype for name, array in some.items()}
        batch = {name: np.empty((len(examples), *array.shape), types[name]) for name, array in some.items()}
        for row, example in enumerate(examples):
            self.write(example, batch, row)
        return batch

    def write(self, example: Arrays, batch: Arrays, row: int) -> None:
        """An example of which `fields` has made arrays into a row of a batch; pixels are normalised, and zeros where
        there is no picture.

        Raises:
          UserError: it has not the batch's fields, in their shapes.
        """
        missing = batch.keys() - example.keys() - ({"image"} if self.image_optional else set())
        if missing or example.keys() - batch.keys():
            raise UserError(
                f"all examples of a batch must have the fields {', '.join(sorted(batch))}, and one has "
                f"{', '.join(sorted(example)) or 'none'}; name those that are needed (data.fields.needed), and the few "
                "records without them are skipped, or take the names of others away (data.fields)"
            )
        if "image" in batch and "image" not in example:
            batch["image"][row] = 0
        for name, array in example.items():
            there = batch[name]
            if array.shape != there.shape[1:]:
                raise UserError(f"{name} must be {list(there.shape[1:])} in all of a batch, not {list(array.shape)}")
            if name in PICTURES:
                self.normalise(array, there[row])
            else:
                there[row] = array

    def fields(self, example: dict[str, Any]) -> Arrays:
        """One example, its image already fitted, as arrays; pixels are bytes still, for `batch` to normalise."""
        arrays: Arrays = {}
        if "image" in example:
            arrays["image"] = example["image"]
        if "video" in example and self.video_frames:
            arrays["video"] = example["video"]
        if "audio" in example and self.audio_length:
            arrays["audio"] = self.clip(example["audio"])
        if self.image_optional:
            arrays["image_mask"] = np.asarray("image" in example)
        if "prompt" in example and "answer" in example:  # without one nothing is asked: a picture was made from it, say
            arrays |= self.pair(example["prompt"], example["answer"])
        elif (text := example.get("caption", example.get("text"))) is not None:
            arrays["text"], arrays["text_mask"] = self.text(text)
        for name in ("label", "task", "codes"):
            if name in example:
                arrays[name] = np.asarray(example[name], np.int32)
        return arrays

    def __call__(self, images: Sequence[np.ndarray] | None = None, texts: Sequence[str] | None = None) -> Arrays:
        """A batch of pictures (uint8 [h, w, c], any sizes) and strings, which are prompts of models that have such.

        Raises:
          ValueError: a single string in place of several, or an empty list.
        """
        if isinstance(texts, str):
            raise ValueError(f"texts must be a list of strings, not the one string {texts!r}")
        if any(each is not None and not len(each) for each in (images, texts)):
            raise ValueError("there is nothing to preprocess: the list is empty")
        batch: Arrays = {}
        if images is not None:
            batch |= self.batch([{"image": self.fit(image)} for image in images])
        if texts is not None:
            texts = [self._asked(text) for text in texts]
            rows = self._longest(texts) if self.padding == "longest" else map(self.text, texts)
            ids, masks = zip(*rows, strict=True)
            batch |= {"text": np.stack(ids), "text_mask": np.stack(masks)}
        return batch

    def _longest(self, texts: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        """A power of two: then few lengths are ever compiled."""
        rows = [self.tokenizer.encode(text, self.text_length) for text in texts]
        longest = max(1, *map(len, rows))
        return [self._padded(ids, min(1 << (longest - 1).bit_length(), self.text_length)) for ids in rows]

    def _padded(self, ids: Sequence[int], length: int) -> tuple[Int[np.ndarray, "L"], Bool[np.ndarray, "L"]]:
        padded = np.full(length, self.tokenizer.pad_id, np.int32)
        padded[: len(ids)] = ids
        return padded, np.full(length, True) if self.padding == "counted" else np.arange(length) < len(ids)
