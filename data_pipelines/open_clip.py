"""Preprocessing that comes with a checkpoint directory of open_clip, in its open_clip_config.json."""

import json
from pathlib import Path
from typing import Any, get_args

from data_pipelines.captions import TRANSFORMERS_TEMPLATE
from data_pipelines.images import Resample, Resize
from data_pipelines.preprocess import Preprocess
from data_pipelines.pretrained import PretrainedTokenizer
from data_pipelines.settings import read_object, sides
from jmm.errors import UserError

OPEN_CLIP = "open_clip_config.json"

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def open_clip_preprocessor(folder: Path) -> Preprocess:
    """What open_clip does with pictures in evaluation and with texts, the tokenizer from the files that its published
    directories hold for transformers.

    Raises:
      UserError: a setting that is broken or not supported, naming it.
    """
    values = read_object(folder / OPEN_CLIP)
    model, cfg = _object(values, "model_cfg"), _object(values, "preprocess_cfg")
    size = cfg.get("size") or _object(model, "vision_cfg").get("image_size") or 224
    height, width = sides(size, f"size in preprocess_cfg of {OPEN_CLIP}")
    return Preprocess(
        image_size=(height, width),
        resize=_resize(cfg.get("resize_mode") or "shortest", (height, width)),
        resample=_resample(cfg.get("interpolation") or "bicubic"),
        mean=_numbers(cfg, "mean", CLIP_MEAN),
        std=_numbers(cfg, "std", CLIP_STD, positive=True),
        text_length=_object(model, "text_cfg").get("context_length") or 77,
        tokenizer=PretrainedTokenizer(str(folder.resolve())),
        caption=TRANSFORMERS_TEMPLATE,
    )


def write_preprocess_cfg(preprocess: Preprocess, folder: Path) -> None:
    """Writes into a directory's open_clip_config.json what open_clip does with pictures.

    Raises:
      UserError: what it cannot express, naming it.
    """
    (height, width), how = preprocess.image_size, preprocess.resize
    # Theirs brings the shorter edge of a square to its size, and then cuts.
    modes = {"squash": "squash", "crop": "shortest", height if height == width else "": "shortest"}
    wrong = {
        f"resize {how}": how not in modes,
        f"resample {preprocess.resample}": preprocess.resample not in ("bicubic", "bilinear"),
        f"scale {preprocess.scale}": preprocess.scale != 1 / 255,
        f"channels {preprocess.channels}": preprocess.channels != 3,
    }
    for what, refused in wrong.items():
        if refused:
            raise UserError(f"open_clip cannot preprocess pictures with {what}")
    values = read_object(folder / OPEN_CLIP)
    values["preprocess_cfg"] = {
        "size": height if height == width else [height, width],
        "mode": "RGB",
        "mean": [*preprocess.mean] * (3 // len(preprocess.mean)),
        "std": [*preprocess.std] * (3 // len(preprocess.std)),
        "interpolation": preprocess.resample,
        "resize_mode": modes[how],
        "fill_color": 0,
    }
    (folder / OPEN_CLIP).write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _object(values: dict[str, Any], name: str) -> dict[str, Any]:
    found = values.get(name)
    if found is not None and not isinstance(found, dict):
        raise UserError(f"{name} in {OPEN_CLIP} is {found!r}; it must be an object")
    return found or {}


def _resize(mode: Any, size: tuple[int, int]) -> Resize | int:
    if mode == "squash":
        return "squash"
    if mode != "shortest":
        raise UserError(f"resize_mode in {OPEN_CLIP} is {mode!r}, which is not supported; 'shortest' and 'squash' are")
    return size[0] if size[0] == size[1] else "crop"


def _resample(name: Any) -> Resample:
    if name not in ("bicubic", "bilinear"):
        raise UserError(f"interpolation in {OPEN_CLIP} is {name!r}, which is not supported; 'bicubic', 'bilinear' are")
    return next(each for each in get_args(Resample) if each == name)


def _numbers(cfg: dict[str, Any], name: str, usual: tuple[float, ...], positive: bool = False) -> tuple[float, ...]:
    found = cfg.get(name) or usual
    numbers = isinstance(found, list | tuple) and all(isinstance(each, int | float) for each in found)
    if not numbers or len(found) != 3 or (positive and not all(each > 0 for each in found)):
        kind = "positive numbers" if positive else "numbers"
        raise UserError(f"{name} in preprocess_cfg of {OPEN_CLIP} is {found!r}; it must be three {kind}")
    return tuple(map(float, found))
