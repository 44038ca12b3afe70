"""The sub-commands of `jmm` that use a trained or converted model on the user's own files."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jmm
from jmm.errors import UserError

Result = dict[str, Any]
"""What `--json` prints; the field `text` of it is what a person reads instead."""

MODEL_HELP = "a workdir of jmm train, or a checkpoint of transformers (config.json and *.safetensors)"


def add_commands(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Their options; `command` makes the parser of one."""
    sub = command("classify", classify, "Say which label fits each picture.")
    sub.add_argument("workdir", type=Path, metavar="DIR", help=MODEL_HELP)
    sub.add_argument("images", type=Path, nargs="+", metavar="IMAGE", help="picture files")
    sub.add_argument(
        "--labels", required=True, metavar='"A,B,C"', help="the labels to choose from, separated by commas"
    )
    sub.add_argument("--template", help="caption of a label; {} is the label (default: as the model is used to)")

    sub = command("search", search, "Find the pictures that fit a text.")
    sub.add_argument("workdir", type=Path, metavar="DIR", help=MODEL_HELP)
    sub.add_argument("query", metavar="TEXT", help="what to look for")
    sub.add_argument(
        "--images", type=Path, required=True, metavar="FOLDER", help="where to look, folders below included"
    )
    sub.add_argument("--count", type=int, default=10, metavar="N", help="how many to show")

    sub = command("caption", caption, "Say what pictures show.")
    sub.add_argument("workdir", type=Path, metavar="DIR", help=MODEL_HELP)
    sub.add_argument("images", type=Path, nargs="+", metavar="IMAGE", help="picture files")
    sub.add_argument("--prompt", help="what is asked of the model (default: as it is used to)")
    add_writing(sub)

    sub = command("answer", answer, "Answer a question about a picture.")
    sub.add_argument("workdir", type=Path, metavar="DIR", help=MODEL_HELP)
    sub.add_argument("image", type=Path, metavar="IMAGE", help="a picture file")
    sub.add_argument("question", metavar="QUESTION", help='such as "what colour is the cube?"')
    add_writing(sub)

    sub = command("generate", generate, "Draw pictures.")
    sub.add_argument("workdir", type=Path, metavar="DIR", help="a model that draws: " + MODEL_HELP)
    sub.add_argument("--prompt", metavar="TEXT", help="what to draw, of a model that reads text")
    sub.add_argument("--count", type=positive, default=16, metavar="N", help="how many pictures (default: 16)")
    sub.add_argument(
        "--to", type=Path, default=Path("generated.png"), metavar="FILE.png", help="(default: %(default)s)"
    )
    add_tokenizer(sub)
    sub.add_argument("--image-prompt", type=Path, metavar="IMAGE", help="a picture that all of them continue")
    sub.add_argument("--rows", type=positive, metavar="N", help="how many rows of its codes are kept (default: half)")
    sub.add_argument("--temperature", type=float, default=1.0, metavar="T", help="0: always the likeliest (default: 1)")
    sub.add_argument("--top-k", type=positive, metavar="N", help="draw from so many likeliest codes")
    sub.add_argument("--top-p", type=float, metavar="P", help="draw from the likeliest codes of this probability")
    sub.add_argument("--guidance", type=float, default=1.0, metavar="G", help="above 1: follow the prompt more closely")
    sub.add_argument(
        "--clip",
        type=Path,
        metavar="DIR3",
        help="a CLIP that chooses the pictures likest the prompt, or, where DIR is a tokenizer, leads it there",
    )
    sub.add_argument("--steps", type=positive, metavar="N", help="of a tokenizer that a --clip leads (default: 200)")
    sub.add_argument("--candidates", type=positive, metavar="M", help="how many it chooses from (default: 4 · N)")
    sub.add_argument("--seed", type=int, default=0, metavar="I", help="the same one draws the same (default: 0)")

    sub = command("encode", encode, "Write the pictures of a dataset as the codes of an image tokenizer.")
    sub.add_argument("workdir", type=Path, metavar="DIR", help="the tokenizer: " + MODEL_HELP)
    sub.add_argument("file", type=Path, metavar="FILE.py", help="an experiment; the pictures are those of its data")
    sub.add_argument("--to", type=Path, required=True, metavar="FOLDER", help="the new folder; it must not be there")
    sub.add_argument("--count", type=positive, metavar="N", help="training examples (default: all)")


def add_writing(sub: argparse.ArgumentParser) -> None:
    """How a text is written."""
    sub.add_argument("--beams", type=positive, default=1, metavar="N", help="search with so many hypotheses")
    sub.add_argument(
        "--max-new-tokens", type=positive, metavar="N", help="the longest text (default: as the model is used to)"
    )
    add_tokenizer(sub)


def add_tokenizer(sub: argparse.ArgumentParser) -> None:
    """For models of codes."""
    sub.add_argument(
        "--tokenizer",
        type=Path,
        metavar="DIR2",
        help="of a model of codes, what makes them of pictures (default: what it learnt by)",
    )


def positive(text: str) -> int:
    """A number from 1."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1")
    return int(text)


def classify(options: argparse.Namespace) -> Result:
    """jmm classify DIR photo.png --labels "one,two,three" """
    from data_pipelines.images import read_image
    from jmm.evaluation.zero_shot import classify as run

    labels = [label.strip() for label in options.labels.split(",") if label.strip()]
    if not labels:
        raise UserError('--labels names no label; give them as --labels "one,two,three"', code=2)
    if options.template is not None and "{}" not in options.template:
        raise UserError(f"--template needs {{}} where the label goes, not {options.template!r}", code=2)
    images = [read_image(path) for path in options.images]
    model = load_clip(options.workdir)
    template = model.preprocess.caption if options.template is None else options.template
    probability = run(model, images, labels, [template])
    found, lines = [], []
    for path, row in zip(options.images, probability, strict=True):
        order = row.argsort()[::-1]
        found.append({"image": str(path), "labels": {labels[i]: float(row[i]) for i in order}})
        lines += [f"{path}: {labels[order[0]]}", *(f"  {row[i]:6.1%}  {labels[i]}" for i in order)]
    return {"text": "\n".join(lines), "images": found}


def search(options: argparse.Namespace) -> Result:
    """jmm search DIR "a handwritten seven" --images FOLDER"""
    from data_pipelines.images import list_images, read_image
    from jmm.evaluation.retrieval import search as run

    if options.count < 1:
        raise UserError(f"--count must be at least 1, not {options.count}", code=2)
    paths = list_images(options.images)
    model = load_clip(options.workdir)
    batch = model.preprocess(images=[read_image(path) for path in paths])
    image = model.outputs(batch, ["image_embedding"])["image_embedding"]
    (order,), (cosine,) = run(model, image, [options.query], options.count)
    found = [{"image": str(paths[i]), "similarity": float(c)} for i, c in zip(order, cosine, strict=True)]
    text = "\n".join(f"{each['similarity']:7.3f}  {each['image']}" for each in found)
    return {"text": text, "query": options.query, "images": found}


def load_clip(workdir: Path) -> Any:
    """The model of a workdir or checkpoint, if it embeds images and texts in one space."""
    from jmm.protocol import inputs_of

    model = jmm.load(workdir)
    if set(inputs_of(model.module, {"image": 0, "text": 0})) != {"image", "text"}:
        raise UserError(f"{workdir} holds a {type(model.module).__name__}, which does not compare images with texts")
    return model


def caption(options: argparse.Namespace) -> Result:
    """jmm caption DIR photo.png [more.png …]"""
    from data_pipelines.images import read_image

    images = [read_image(path) for path in options.images]
    model = load_writer(options.workdir)
    prompt = model.preprocess.describe if options.prompt is None else options.prompt
    texts = written(options, model, images, prompt)
    found = [{"image": str(path), "caption": text} for path, text in zip(options.images, texts, strict=True)]
    lines = [f"{each['image']}: {one_line(each['caption'])}" for each in found]
    return {"text": "\n".join(lines), "prompt": prompt, "images": found}


def answer(options: argparse.Namespace) -> Result:
    """jmm answer DIR photo.png "what colour is the cube?" """
    from data_pipelines.images import read_image

    if not options.question.strip():
        raise UserError("the question is empty; ask one about the picture", code=2)
    image = read_image(options.image)
    model = load_writer(options.workdir)
    prompt = model.preprocess.ask.replace("{}", options.question)
    (text,) = written(options, model, [image], prompt)
    return {
        "text": one_line(text),
        "image": str(options.image),
        "question": options.question,
        "prompt": prompt,
        "answer": text,
    }


def generate(options: argparse.Namespace) -> Result:
    """jmm generate DIR --prompt "a large red circle above a small blue square" --count 16"""
    from data_pipelines.images import read_image
    from jmm.evaluation.pictures import sheet
    from jmm.evaluation.retrieval import likeness
    from jmm.generation.images import Manner, draw_images

    if options.rows and not options.image_prompt:
        raise UserError("--rows says how much of an --image-prompt is kept; there is none", code=2)
    if options.candidates and not options.clip:
        raise UserError("--candidates are chosen from by a --clip; there is none", code=2)
    if options.clip and options.prompt is None:
        raise UserError("--clip compares pictures with a --prompt; there is none", code=2)
    if not options.to.parent.is_dir():
        raise UserError(f"there is no folder {options.to.parent} for --to {options.to.name}", code=2)
    beginning = read_image(options.image_prompt) if options.image_prompt else None
    model = jmm.load(options.workdir)
    if hasattr(model.module, "look_up") and options.clip:
        return draw_by_gradient(options, model)
    if options.steps:
        raise UserError("--steps are of a tokenizer that a --clip leads to the prompt", code=2)
    tokenizer = load_tokenizer(options.workdir, options.tokenizer)
    number = max(options.count, options.candidates or 4 * options.count) if options.clip else options.count
    images = draw_images(
        model,
        tokenizer,
        None if options.prompt is None else [options.prompt] * number,
        count=number,
        beginning=beginning,
        rows=options.rows,
        manner=Manner(options.temperature, options.top_k, options.top_p, options.guidance),
        seed=options.seed,
    )
    result: Result = {"picture": str(options.to), "prompt": options.prompt, "count": options.count}
    if options.clip:
        found = likeness(jmm.load(options.clip), list(images), [options.prompt] * number)
        order = found.argsort()[::-1][: options.count]
        images, result["similarity"] = images[order], [float(found[i]) for i in order]
    sheet(options.to, list(images))
    return {"text": f"{'written':<28}{options.to}", **result}


def draw_by_gradient(options: argparse.Namespace, tokenizer: Any) -> Result:
    """Pictures of a tokenizer's codes that a CLIP finds like the prompt, a row of them for each part of the way."""
    from jmm.evaluation.pictures import sheet
    from jmm.generation.pursuit import Pursuit, pursue

    others = {
        "--tokenizer": options.tokenizer,
        "--image-prompt": options.image_prompt,
        "--candidates": options.candidates,
        "--temperature": options.temperature != 1,
        "--top-k": options.top_k,
        "--top-p": options.top_p,
        "--guidance": options.guidance != 1,
    }
    wrong = next((name for name, given in others.items() if given), None)
    if wrong:
        raise UserError(f"{wrong} is of models that draw code by code; a tokenizer's are found by gradient", code=2)
    manner = Pursuit() if options.steps is None else Pursuit(steps=options.steps)
    found = pursue(
        tokenizer, jmm.load(options.clip), options.prompt, count=options.count, manner=manner, seed=options.seed
    )
    sheet(options.to, [image for stage in found.images for image in stage], columns=options.count)
    best = {"similarity": found.similarity[-1].tolist(), "steps": list(found.steps)}
    text = f"{'written':<28}{options.to}, a row after each of {', '.join(map(str, found.steps))} steps"
    return {"text": text, "picture": str(options.to), "prompt": options.prompt, "count": options.count, **best}


def load_tokenizer(workdir: Path, tokenizer: Path | None) -> Any:
    """The tokenizer that is named, or else the one beside the codes that a workdir's model was trained on; None where
    there is neither."""
    from data_pipelines.stream import codes_of
    from jmm.training.workdir import EXPERIMENT_FILE, read_experiment

    if tokenizer is None and (workdir / EXPERIMENT_FILE).exists():
        codes = codes_of(read_experiment(workdir).data)
        if codes is not None:
            if not codes.tokenizer.is_dir():
                raise UserError(f"the tokenizer {codes.tokenizer} is no longer there; name it with --tokenizer")
            tokenizer = codes.tokenizer
    return None if tokenizer is None else jmm.load(tokenizer)


def encode(options: argparse.Namespace) -> Result:
    """jmm encode DIR FILE.py --to FOLDER"""
    from jmm.interop.convert import check_target
    from jmm.interop.encode import encode as run
    from jmm.overrides import read_experiment_file

    check_target(options.to)
    data = read_experiment_file(options.file).data
    written = run(jmm.load(options.workdir), data, options.to, options.count)
    lines = [f"{'written':<28}{options.to}", *(f"  {name:<26}{count:,} examples" for name, count in written.items())]
    return {"text": "\n".join(lines), "target": str(options.to), "examples": written}


def one_line(text: str) -> str:
    """A text as a line of output."""
    return " ".join(text.split())


def written(options: argparse.Namespace, model: Any, images: list[Any], prompt: str) -> list[str]:
    """What a model writes about pictures, or about the codes that a tokenizer makes of them."""

    from jmm.generation import tell, write_texts
    from jmm.generation.images import encode
    from jmm.protocol import inputs_of

    beams, room = options.beams, options.max_new_tokens
    if inputs_of(model.module, {"image": 0}, "prefill"):
        if options.tokenizer:
            raise UserError(f"{type(model.module).__name__} looks at pictures itself, without a --tokenizer", code=2)
        return write_texts(model, images, prompt, beams=beams, max_new_tokens=room)
    tokenizer = load_tokenizer(options.workdir, options.tokenizer)
    if tokenizer is None:
        raise UserError(f"{type(model.module).__name__} reads codes; name what makes them of pictures with --tokenizer")
    codes = encode(tokenizer, images)
    return tell(model, codes, [prompt] * len(images), beams=beams, max_new_tokens=room)


def load_writer(workdir: Path) -> Any:
    """The model of a workdir or checkpoint, if it writes about pictures."""
    from jmm.protocol import Writer, inputs_of

    model = jmm.load(workdir)
    what = f"{workdir} holds a {type(model.module).__name__}"
    if not isinstance(model.module, Writer):
        raise UserError(f"{what}, which writes no text")
    reads = set(inputs_of(model.module, {"image": 0, "codes": 0, "target": 0}, "prefill"))
    if not reads & {"image"} and not reads >= {"codes", "target"}:
        raise UserError(f"{what}, which writes without looking at pictures")
    return model
