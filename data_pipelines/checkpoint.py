"""Preprocessing that comes with a checkpoint directory, in transformers' layout or in open_clip's."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from data_pipelines.captions import TRANSFORMERS_TEMPLATE
from data_pipelines.images import Resample, Resize
from data_pipelines.open_clip import CLIP_MEAN, CLIP_STD, OPEN_CLIP, open_clip_preprocessor
from data_pipelines.preprocess import Padding, Preprocess
from data_pipelines.pretrained import PretrainedTokenizer
from data_pipelines.settings import read_object, sides, text_config
from jmm.errors import UserError

HALF = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class Processor:
    """What an image processor of transformers does unless its file says otherwise."""

    crop: bool
    """The shorter edge is brought to the size and the middle cut out; otherwise the picture is squashed."""
    resample: Resample
    mean: tuple[float, ...]
    std: tuple[float, ...]


PROCESSORS = {
    "CLIP": Processor(True, "bicubic", CLIP_MEAN, CLIP_STD),
    "Siglip": Processor(False, "bicubic", HALF, HALF),
    "ViT": Processor(False, "bilinear", HALF, HALF),
    "Vae": Processor(False, "lanczos", (0.5,), (0.5,)),
}
"""By the beginning of their names."""

MODEL_PROCESSORS = {"clip": "CLIP", "paligemma": "Siglip", "siglip": "Siglip", "vit": "ViT", "VQModel": "Vae"}
"""Those of a `model_type`, or of a class of diffusers, where no file names one."""

POSITIONS = {
    **{"bart": 1024, "bert": 512, "clip": 77, "gpt2": 1024, "llama": 2048, "mt5": 512, "opt": 2048},
    **{"qwen2": 32_768, "roberta": 514, "siglip": 64, "t5": 512, "xlm-roberta": 514},
    **{"gemma": 8192, "paligemma": 8192},
}
"""The longest text of a `model_type`, where config.json leaves it to transformers' default."""

BEHIND_PADDING = ("roberta", "xlm-roberta")
"""Their positions begin after the id of the padding, and the table of positions is longer by that."""


def preprocessor_of(directory: str | Path) -> Preprocess:
    """What transformers' own processor and tokenizer of a directory do, or open_clip's; a tokenizer that is missing is
    noticed when the first text comes.

    Raises:
      UserError: no config.json, or settings that are broken or not supported, naming them.
    """
    folder = Path(directory)
    if (folder / OPEN_CLIP).is_file():
        return open_clip_preprocessor(folder)
    if not (folder / "config.json").is_file():
        raise UserError(f"{directory} is no checkpoint of transformers: it holds no config.json")
    config, tokens = read_object(folder / "config.json"), read_object(folder / "tokenizer_config.json")
    prompted = config.get("model_type") == "paligemma"
    return Preprocess(
        **image_settings(folder, config),
        text_length=_text_length(text_config(config), tokens),
        padding=_padding(config, tokens),
        tokenizer=PretrainedTokenizer(str(folder.resolve()), marks=not prompted),
        caption=TRANSFORMERS_TEMPLATE,
        **(_prompts(tokens) if prompted else {}),
    )


def _prompts(tokens: Mapping[str, Any]) -> dict[str, Any]:
    """PaliGemma's processor puts the mark of begin and a new line around a prompt, whatever its tokenizer does; the
    prompts are the paper's (Beyer et al. 2024, section 3.2)."""
    begin = tokens.get("bos_token", "<bos>")
    begin = begin.get("content") if isinstance(begin, dict) else begin
    return {"prompt": f"{begin}{{}}\n", "describe": "caption en", "ask": "answer en {}"}


def image_settings(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `Preprocess` about images, from processor_config.json or preprocessor_config.json; without them,
    those of the family. None at all for a model of texts alone."""
    values = read_object(folder / "processor_config.json").get("image_processor")
    if not isinstance(values, dict):
        values = read_object(folder / "preprocessor_config.json")
    name = values.get("image_processor_type") or values.get("feature_extractor_type")
    model_type = str(config.get("model_type", config.get("_class_name")))
    kind = MODEL_PROCESSORS.get(model_type, "") if name is None else _short(name)
    if not kind and not values:
        return {}
    if kind not in PROCESSORS:
        known = ", ".join(f"{each}ImageProcessor" for each in PROCESSORS)
        raise UserError(f"the image processor {name} of {folder} is not supported; {known} are")
    usual = PROCESSORS[kind]
    scale = values.get("rescale_factor", 1 / 255) if _flag(values, "do_rescale", True) else 1.0
    if not isinstance(scale, float | int) or scale <= 0:
        raise UserError(f"rescale_factor of the image processor is {scale!r}; it must be a positive number")
    size = _vision(config, "image_size", config.get("sample_size", 224))
    trained, channels = sides(size, "image_size in config.json"), _channels(config)
    return {
        **_geometry(values, usual, trained),
        "resample": _resample(values.get("resample"), usual.resample),
        "channels": channels,
        "scale": float(scale),
        **_statistics(values, usual, channels),
    }


def _short(name: str) -> str:
    for end in ("Fast", "Pil", "ImageProcessor", "FeatureExtractor"):
        name = str(name).removesuffix(end)
    return name


def _geometry(values: Mapping[str, Any], usual: Processor, trained: tuple[int, int]) -> dict[str, Any]:
    """`image_size` and `resize`; `trained` is the size that the model was made for."""
    size, crop = _size(values, "size", square=not usual.crop), _size(values, "crop_size", square=True)
    cut = (crop or trained) if _flag(values, "do_center_crop", usual.crop) else None
    final: tuple[int, int] | None
    how: Resize | int
    if not _flag(values, "do_resize", True):
        final, how = cut, "none"
    elif isinstance(size, int) or (size is None and usual.crop):
        final, how = cut, size or min(trained)
    else:
        final, how = size or trained, "squash"
        if cut not in (None, final):
            raise UserError(f"an image processor with size {final} and crop_size {cut} is not supported")
    if final is None:
        raise UserError("an image processor that does not squash must crop; set do_center_crop and crop_size")
    return {"image_size": final, "resize": how}


def _size(values: Mapping[str, Any], name: str, square: bool) -> Any:
    """(height, width), or the length of the shorter edge; None where nothing is said. A bare number is one of them."""
    value = values.get(name)
    if isinstance(value, int):
        value = {"height": value, "width": value} if square else {"shortest_edge": value}
    elif isinstance(value, list) and len(value) == 2:
        value = dict(zip(("height", "width"), value, strict=True))
    if value is None:
        return None
    if isinstance(value, dict) and all(_is_size(length) for length in value.values()):
        if value.keys() == {"height", "width"}:
            return value["height"], value["width"]
        if value.keys() == {"shortest_edge"} and name == "size":
            return value["shortest_edge"]
    raise UserError(f"{name} of the image processor is {value!r}; height and width are supported, or shortest_edge")


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _resample(code: Any, usual: Resample) -> Resample:
    names = get_args(Resample)
    if code is None:
        return usual
    if not isinstance(code, int) or not 0 <= code < len(names):
        raise UserError(f"resample of the image processor is {code!r}; it must be one of Pillow's codes, 0 to 5")
    return names[code]


def _statistics(values: Mapping[str, Any], usual: Processor, channels: int) -> dict[str, tuple[float, ...]]:
    """`mean` and `std`."""
    if not _flag(values, "do_normalize", True):
        return {"mean": (0.0,), "std": (1.0,)}
    return {
        "mean": _numbers(values, "image_mean", usual.mean, channels),
        "std": _numbers(values, "image_std", usual.std, channels, positive=True),
    }


def _numbers(
    values: Mapping[str, Any], name: str, usual: tuple[float, ...], channels: int, positive: bool = False
) -> tuple[float, ...]:
    found = values.get(name)
    found = usual if found is None else found if isinstance(found, list | tuple) else [found]
    numbers = all(isinstance(each, int | float) and (each > 0 or not positive) for each in found)
    if not numbers or len(found) not in (1, channels):
        kind = "positive number" if positive else "number"
        raise UserError(
            f"{name} of the image processor is {found!r}; it must be one {kind} a channel, of which there are "
            f"{channels}, or one for all"
        )
    return tuple(map(float, found))


def _flag(values: Mapping[str, Any], name: str, default: bool) -> bool:
    value = values.get(name)
    if value is not None and not isinstance(value, bool):
        raise UserError(f"{name} of the image processor is {value!r}; it must be true or false")
    return default if value is None else value


def _vision(config: Mapping[str, Any], name: str, default: Any) -> Any:
    """A field of the image tower, which lies within a config of two towers."""
    inner = config.get("vision_config")
    value = (inner if isinstance(inner, dict) else config).get(name)
    return default if value is None else value


def _channels(config: Mapping[str, Any]) -> int:
    channels: Any = _vision(config, "num_channels", config.get("in_channels", 3))
    if not _is_size(channels):
        raise UserError(f"num_channels in config.json is {channels!r}; it must be a positive whole number")
    return int(channels)


def _text_length(config: Mapping[str, Any], tokens: Mapping[str, Any]) -> int:
    kind = str(config.get("model_type"))
    names = ("max_position_embeddings", "n_positions")
    length: int = next((config[name] for name in names if _is_size(config.get(name))), POSITIONS.get(kind, 512))
    if kind in BEHIND_PADDING:
        pad = config.get("pad_token_id")
        length -= (pad if isinstance(pad, int) else 1) + 1
    longest: Any = tokens.get("model_max_length")  # where there is no limit, this is 1e30
    return min(length, longest) if _is_size(longest) else length


def _padding(config: Mapping[str, Any], tokens: Mapping[str, Any]) -> Padding:
    """Models of two towers read texts of one length. SigLIP's tokenizer gives no mask, so padding counts; CLIP takes
    what stands at the end of the text, wherever its tokenizer leaves the mask out."""
    kind = str(config.get("model_type"))
    if kind == "paligemma" or ("text_config" not in config and kind not in ("clip", "siglip")):
        return "longest"
    given = tokens.get("model_input_names")
    if given is not None and not isinstance(given, list):
        raise UserError(f"model_input_names in tokenizer_config.json is {given!r}; it must be a list of names")
    return "counted" if kind == "siglip" and given is not None and "attention_mask" not in given else "masked"
