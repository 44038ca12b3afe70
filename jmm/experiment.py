"""An experiment: everything that decides a run, as frozen, typed dataclasses.

An experiment file is a page of Python with a function `experiment()` that returns an `Experiment`. Every field
can be set on the command line by its dotted name: `--seed 5 --optimizer.learning_rate 1e-3 --mesh.fsdp 2`.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

from data_pipelines.protocol import Dataset
from jmm.distributed.mesh import MeshShape
from jmm.protocol import ModelConfig

__all__ = ["Checkpoint", "Evaluation", "Experiment", "MeshShape", "Optimizer", "Precision"]

Precision = Literal["auto", "float32", "bfloat16"]

if TYPE_CHECKING:
    from pathlib import Path

    from jmm.model import Model


@runtime_checkable
class Evaluation(Protocol):
    """Measures a model on held-out data: a frozen dataclass of settings with these two methods."""

    def run(self, model: "Model", data: Dataset) -> dict[str, float]:
        """Figures by name, such as `zero_shot/accuracy`; every process computes the same ones."""
        ...

    def draw(self, model: "Model", data: Dataset, folder: "Path") -> "list[Path]":
        """Pictures of the result, written to `folder` once at the end; may be none."""
        ...


@dataclass(frozen=True)
class Optimizer:
    """AdamW (Loshchilov & Hutter 2019), and Muon where asked for, with a schedule, and what is done around it."""

    learning_rate: float = 1e-3
    """The highest rate, reached at the end of the warm-up."""
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    """After the warm-up: stay, or fall to `final_fraction` at the last step."""
    warmup_steps: int = 0
    """Steps over which the rate rises linearly from 0."""
    final_fraction: float = 0.0
    """The last rate as a fraction of `learning_rate`."""
    b1: float = 0.9
    """Decay of the mean of gradients."""
    b2: float = 0.999
    """Decay of the mean of squared gradients."""
    eps: float = 1e-8
    """Added to the root of the mean of squared gradients."""
    weight_decay: float = 0.0
    """Decoupled weight decay a step, times the learning rate."""
    decay: tuple[str, ...] = ("kernel$",)
    """Patterns (regular expressions, searched in paths such as `text/encoder/blocks/mlp/up/kernel`) of the
    parameters that decay: matrices, not biases, norms, positions or temperatures."""
    muon: tuple[str, ...] = ()
    """Patterns of the kernels that Muon moves (Jordan et al. 2024) instead of AdamW, such as `blocks/.*kernel$`: steps
    cost more and small transformers need fewer of them. Not for embeddings, heads and first layers."""
    clip_norm: float | None = 1.0
    """Largest global norm of the gradient; None does not clip."""
    accumulate: int = 1
    """Micro-batches that a batch is cut into, one after another, gradients averaged. A contrastive loss then
    contrasts within each micro-batch."""
    average: float | None = None
    """Decay of the moving average of the weights, which evaluations and `jmm.load` then use; None keeps none."""
    freeze: tuple[str, ...] = ()
    """Patterns of the parameters that stay as they are; they take no gradient and no optimizer memory."""


@dataclass(frozen=True)
class Checkpoint:
    """When the state is saved and what is kept."""

    every: int = 1000
    """Steps between checkpoints; the last step is always saved."""
    keep: int = 2
    """Newest checkpoints kept."""
    best: str | None = None
    """Name of a figure, such as `eval/zero_shot/accuracy`; the checkpoint with the highest is kept as well."""


@dataclass(frozen=True)
class Experiment:
    """One run, completely described."""

    name: str
    """Name of the run."""
    model: ModelConfig
    """The system, from `jmm.models`."""
    data: Dataset
    """The dataset, from `data_pipelines`."""
    steps: int
    """Optimizer steps."""
    batch_size: int
    """Examples a step, over all devices and processes."""
    initial: str = ""
    """A folder whose weights training starts from: a published one, a workdir, a model of jmm; empty: random ones."""
    fresh: tuple[str, ...] = ()
    """Patterns of the parameters that start from random values all the same: a new head or pooler. The system may then
    be another than that of the folder; what both have by one name is taken over."""
    seed: int = 0
    """Of the initial weights, the order of the data, augmentation and dropout."""
    optimizer: Optimizer = field(default_factory=Optimizer)
    """How the weights move."""
    mesh: MeshShape = field(default_factory=MeshShape)
    """How devices are arranged."""
    precision: Precision = "auto"
    """Type in which the model computes; auto: bfloat16 on accelerators, float32 on CPU. Weights are float32."""
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    """When the state is saved."""
    evaluations: tuple[Evaluation, ...] = ()
    """What is measured on held-out data."""
    evaluate_every: int = 0
    """Steps between evaluations; 0: only after the last step."""
    log_every: int = 10
    """Steps between lines of `metrics.jsonl`."""
    data_threads: int = 2
    """Host threads that read and transform examples ahead of their use: of this process, or of each worker."""
    data_workers: int = 0
    """Host processes that do so for this one, which Python keeps from using more than a few processors. A script that
    calls `train` then needs `if __name__ == "__main__":`."""
    broken_share: float = 0.01
    """Of all records that are asked for, so many may be broken: others come in their places. With more, by more than
    three standard deviations of what chance makes it, training ends."""
