"""A family of published models: their config.json and their names, and ours."""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jmm.errors import UserError
from jmm.interop.fields import Fields
from jmm.interop.table import Row, Tensors, export_tensors, flatten, import_tensors
from jmm.models.vit import ImageTower
from jmm.parts.transformer import TransformerConfig
from jmm.protocol import ModelConfig, inputs_of


def _all_is_used(config: Any, variables: Any) -> tuple[Any, Any]:
    return config, variables


@dataclass(frozen=True)
class Family:
    """One `model_type`: how its config.json and its tensors become ours, and back."""

    model_type: str
    """In their config.json; diffusers says `_class_name`."""
    architectures: tuple[str, ...]
    """Their classes whose weights are read."""
    config: type | tuple[type, ...]
    """Our config, or those of several systems that have one form there."""
    read: Callable[[Fields, Collection[str]], Any]
    """Our config from their config.json and the canonical names of their tensors, which tell whether there is a pooler
    or a head; refuses by name what is not supported."""
    write: Callable[[Any], dict[str, Any]]
    """Their config.json from our config. It may leave out what theirs has no field for: `write_config` compares."""
    table: Callable[[Any], list[Row]]
    """The rows for our config. Their names are the canonical ones: those that transformers writes today."""
    renames: tuple[tuple[str, str], ...] = ()
    """(regular expression, replacement): other eras' names to canonical ones, applied to each name in this order."""
    ignored: str = ""
    """A regular expression for canonical names that are no weights."""
    config_file: str = "config.json"
    """The file that holds their config."""
    stem: str = "model"
    """What the names of their *.safetensors begin with."""
    pickle: str = "pytorch_model.bin"
    """The name of their older files."""
    used: Callable[[Any, Any], tuple[Any, Any]] = _all_is_used
    """Our config and variables without what only training needs, such as a critic."""


class Renamed(Mapping[str, Any]):
    """Their tensors under canonical names."""

    def __init__(self, tensors: Tensors, renames: Iterable[tuple[str, str]]):
        self.tensors = tensors
        self.original: dict[str, str] = {}
        """Their own name by canonical name."""
        for name in tensors:
            canonical = name
            for pattern, replacement in renames:
                canonical = re.sub(pattern, replacement, canonical)
            if canonical in self.original:
                raise UserError(f"the tensors {self.original[canonical]} and {name} are one, {canonical}")
            self.original[canonical] = name

    def __getitem__(self, name: str) -> Any:
        return self.tensors[self.original[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self.original)

    def __len__(self) -> int:
        return len(self.original)


def abstract(config: ModelConfig) -> dict[str, Any]:
    """Shapes and types of a system's variables, without computing them.

    Raises:
      UserError: the config has sizes that nothing can have.
    """
    module = config.build(jnp.float32)
    spec = config.batch_spec(1)

    def init() -> Any:
        batch = {name: jnp.zeros(each.shape, each.dtype) for name, each in spec.items()}
        return module.init(jax.random.key(0), **inputs_of(module, batch))

    try:
        return dict(jax.eval_shape(init))
    except (ArithmeticError, LookupError, TypeError, AttributeError, ValueError) as error:
        # Whatever a part makes of sizes that nothing can have.
        raise UserError(f"a {type(config).__module__} of these sizes cannot be built ({error})") from error


def read_config(family: Family, config_json: Mapping[str, Any], tensors: Collection[str] = ()) -> Any:
    """Our config from a parsed config.json and the canonical names of the tensors beside it.

    Raises:
      UserError: naming the field that is missing or not supported.
    """
    names = config_json.get("architectures") or ()
    if not isinstance(names, list | tuple):
        raise UserError(f"architectures in config.json is {names!r}; it must be a list of names")
    for name in names:
        if name not in family.architectures:
            known = ", ".join(family.architectures)
            raise UserError(f"architectures in config.json has {name!r}, which is not supported; {known} are")
    if config_json.get("quantization_config") is not None:
        raise UserError("config.json has a quantization_config, which is not supported; take the unquantised model")
    return family.read(Fields(config_json, family.config_file), tensors)


def write_config(family: Family, config: Any) -> dict[str, Any]:
    """Their config.json for our config.

    Raises:
      UserError: naming our fields that theirs cannot express.
    """
    written = family.write(config)
    ours = flatten(abstract(config))
    names = [name for row in family.table(config) if row.ours in ours for name in row.names(0)[:1]]
    # Reading it back finds whatever theirs has no field for.
    lost = list(differences(plain(family.read(Fields(written), names)), plain(config)))
    if lost:
        said = "; ".join(f"{name} is {ours!r}, they would have {theirs!r}" for name, theirs, ours in lost)
        raise UserError(f"{family.model_type} cannot express this model: {said}")
    return written


def import_family(family: Family, config: Any, tensors: Tensors) -> Any:
    """Our variables from their tensors, in host memory.

    Raises:
      UserError: listing every tensor that is missing, left over or of a wrong shape.
    """
    canonical = Renamed(tensors, family.renames)
    return import_tensors(family.table(config), canonical, abstract(config), family.ignored)


def export_family(
    family: Family, config: Any, variables: Any, names: Iterable[str] | None = None
) -> dict[str, np.ndarray]:
    """Their tensors, under canonical names, from our variables: undoes `import_family`. `names` are those to write,
    where there are several for one tensor.

    Raises:
      UserError: listing every tensor that has no row, or that ours do not make.
    """
    return export_tensors(family.table(config), variables, names)


LOSS_ALONE = {
    *("label_smoothing", "equal_captions", "contrastive_weight", "captioning_weight"),
    *("beta", "weighted", "distance"),
}
"""Fields of our configs that change no output."""


def plain(config: Any) -> Any:
    """A config without what is a matter of running or training alone (how the layers are run, rates of dropout, what
    only the loss reads), and without a crop that leaves nothing out."""
    if isinstance(config, TransformerConfig):
        config = replace(config, scan=True, remat="none", dropout=0.0)
    if isinstance(config, ImageTower) and not any(side % config.patch_size for side in config.image_size):
        config = replace(config, crop=False)
    if not is_dataclass(config) or isinstance(config, type):
        return config
    values = {each.name: plain(getattr(config, each.name)) for each in fields(config) if each.init}
    values |= {each.name: each.default for each in fields(config) if each.name in LOSS_ALONE}
    return replace(config, **values)


def differences(one: Any, other: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted name, value, other value) of every field in which two configs differ."""
    if is_dataclass(one) and type(one) is type(other):
        for each in fields(one):
            name = f"{prefix}.{each.name}" if prefix else each.name
            yield from differences(getattr(one, each.name), getattr(other, each.name), name)
    elif one != other:
        yield prefix, one, other
