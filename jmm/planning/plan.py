"""What a run will need of a slice: memory, work, traffic, time and money."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jmm.planning.chips import GIB, Slice, slice_of
from jmm.planning.hlo import SLICES

RING = 2
"""Links that a chip sends on in one exchange: both ways round one ring of the torus."""


@dataclass(frozen=True)
class Plan:
    """The facts of a compiled step, on the chips of a slice.

    The time of a step is a roofline: of each operation the longer of its products at the chip's peak and its bytes at
    the memory's bandwidth, and behind them the exchanges that nothing hides. No chip reaches it; programs compare.
    """

    facts: dict[str, Any]
    """Of `jmm.planning.compiler`."""

    @property
    def slice(self) -> Slice:
        """Where it is to run."""
        return slice_of(self.facts["topology"], self.facts["slices"])

    @property
    def memory(self) -> dict[str, int]:
        """Bytes on a device, by kind."""
        state = dict(self.facts["state_bytes"])
        if not self.fits:
            return state
        # The compiler pads what it is given, and holds gradients and activations in one pool.
        state["padding"] = max(self.facts["arguments"] - sum(state.values()), 0)
        rest = {"activations and gradients": "temporaries", "results": "results", "program": "code"}
        return state | {name: self.facts[field] for name, field in rest.items() if self.facts[field]}

    @property
    def memory_needed(self) -> int:
        """Bytes on a device: at most the sum of all kinds, which need not be there at once."""
        return sum(self.memory.values()) if self.fits else int(self.facts["needed"])

    @property
    def memory_there(self) -> int:
        """Bytes of a device."""
        chip = self.slice.chip
        return int(self.facts.get("available", chip.memory // chip.devices))

    @property
    def fits(self) -> bool:
        """Whether the step can run there, which the compiler knows."""
        return bool(self.facts["fits"])

    @property
    def evaluation(self) -> "Plan | None":
        """The plan of the forward pass of evaluations, if the experiment has any."""
        found = self.facts["evaluation"]
        return Plan(self.facts | {"state_bytes": {}, "evaluation": None} | found) if found else None

    @property
    def works(self) -> bool:
        """Whether both steps fit."""
        return self.fits and (self.evaluation is None or self.evaluation.fits)

    @property
    def seconds(self) -> dict[str, float]:
        """Of a step, by what limits it: compute, memory, interconnect."""
        chip = self.slice.chip
        found, moved, hidden = {"compute": 0.0, "memory": 0.0}, 0.0, 0.0
        for times, flops, bytes_, beside in self.facts["work"]:
            compute, memory = flops / (chip.peak / chip.devices), bytes_ / (chip.bandwidth / chip.devices)
            moved += times * memory
            if not beside:
                found["compute" if compute > memory else "memory"] += times * max(compute, memory)
        shown = 0.0
        for _, axes, beside, sent in self.facts["collectives"]:
            seconds = sent / ((chip.network if axes == SLICES else RING * chip.link) / chip.devices)
            hidden, shown = (hidden + seconds, shown) if beside else (hidden, shown + seconds)
        busy = found["compute"] + found["memory"]
        # What runs beside other operations costs only what is longer than they are.
        late = max(moved - busy, 0.0)
        return {
            "compute": found["compute"],
            "memory": found["memory"] + late,
            "interconnect": shown + max(hidden - busy - late - shown, 0.0),
        }

    @property
    def step_seconds(self) -> float:
        """Of a step."""
        return sum(self.seconds.values())

    @property
    def limit(self) -> str:
        """What takes most of a step."""
        return max(self.seconds, key=lambda name: self.seconds[name])

    @property
    def utilisation(self) -> float:
        """The share of the slice's peak that the model's own work takes (Chowdhery et al. 2022, appendix B)."""
        return self.facts["model_flops"] / (self.step_seconds * self.slice.chips * self.slice.chip.peak)

    @property
    def flops_executed(self) -> float:
        """Of all devices, what is computed again included."""
        return self.slice.devices * sum(times * flops for times, flops, *_ in self.facts["work"])

    @property
    def sent(self) -> dict[str, float]:
        """Bytes that a device sends a step, by kind of exchange and axes of the mesh."""
        found: dict[str, float] = {}
        for kind, axes, _, sent in self.facts["collectives"]:
            name = f"{kind} over {axes or 'none'}"
            found[name] = found.get(name, 0.0) + sent
        return dict(sorted(found.items(), key=lambda each: -each[1]))

    @property
    def hours(self) -> float:
        """Of all steps."""
        return self.facts["steps"] * self.step_seconds / 3600

    def cost(self, price: float) -> float:
        """Of all steps, at a price of a chip for an hour."""
        return price * self.slice.chips * self.hours

    def as_json(self, price: float | None = None) -> dict[str, Any]:
        """All figures by name; bytes and FLOPs are a device's and a step's."""
        names = ("experiment", "topology", "slices", "mesh", "batch_size", "steps", "precision", "parameters")
        found: dict[str, Any] = {name: self.facts[name] for name in names}
        found |= {
            "chips": self.slice.chips,
            "devices": self.slice.devices,
            "fits": self.fits,
            "memory": self.memory,
            "memory_needed": self.memory_needed,
            "memory_there": self.memory_there,
            "model_flops": self.facts["model_flops"],
        }
        if self.evaluation:
            found["evaluation"] = {"rows": self.facts["evaluation"]["rows"], "fits": self.evaluation.fits}
            found["evaluation"]["memory_needed"] = self.evaluation.memory_needed
            found["evaluation"] |= {"seconds": self.evaluation.step_seconds} if self.evaluation.fits else {}
        if not self.fits:
            return found
        found |= {
            "flops_executed": self.flops_executed,
            "sent": self.sent,
            "seconds": self.seconds,
            "step_seconds": self.step_seconds,
            "limit": self.limit,
            "utilisation": self.utilisation,
            "examples_per_second": self.facts["batch_size"] / self.step_seconds,
            "hours": self.hours,
            "seconds_to_compile": self.facts["seconds_to_compile"],
        }
        return found if price is None else found | {"cost": self.cost(price)}

    def as_text(self, price: float | None = None) -> str:
        """For a person."""
        facts, place = self.facts, self.slice
        device = "chip" if place.chip.devices == 1 else f"1/{place.chip.devices} chip"
        mesh = " × ".join(f"{axis} {size}" for axis, size in facts["mesh"].items())
        rows = [
            ("experiment", f"{facts['experiment']}, {facts['parameters']:,} parameters, {facts['precision']}"),
            ("slice", f"{place}, {place.chips} chips; mesh {mesh}"),
            ("batch", f"{facts['batch_size']:,} examples a step"),
            (f"memory a {device}", ""),
            *((f"  {name}", f"{size / GIB:10.3f} GiB") for name, size in self.memory.items()),
            ("  in all, at most", f"{self.memory_needed / GIB:10.3f} GiB of {self.memory_there / GIB:.2f}"),
        ]
        if self.fits:
            rows += self._work(device, price)
        if self.evaluation:
            other = self.evaluation
            told = f"{facts['evaluation']['rows']:,} examples, {other.memory_needed / GIB:.2f} GiB"
            rows.append(("evaluation step", told + (f", {1e3 * other.step_seconds:.2f} ms" if other.fits else "")))
        wide = max(28, *(len(name) + 2 for name, _ in rows))
        lines = [f"{name:<{wide}}{value}".rstrip() for name, value in rows]
        for each, what in ((self, "It"), (self.evaluation, "The evaluation")):
            if each is not None and not each.fits:
                short = (each.memory_needed - each.memory_there) / GIB
                lines.append(
                    f"{what} does not fit: {short:.2f} GiB a {device} are missing; cut more by mesh.fsdp, or do less a "
                    "step."
                )
        return "\n".join(lines)

    def _work(self, device: str, price: float | None) -> list[tuple[str, str]]:
        seconds, model, executed = self.seconds, self.facts["model_flops"], self.flops_executed
        rows = [
            ("work a step", f"{model / 1e12:10.2f} TFLOP of the model; {executed / 1e12:.2f} executed"),
            (f"sent by a {device}", f"{sum(self.sent.values()) / 1e6:10.1f} MB a step"),
            *((f"  {kind}", f"{size / 1e6:10.1f} MB") for kind, size in self.sent.items()),
            ("step, at best", f"{1e3 * self.step_seconds:10.2f} ms, most of it {self.limit}"),
            *((f"  {name}", f"{1e3 * each:10.2f} ms") for name, each in seconds.items()),
            ("model FLOPs utilisation", f"{self.utilisation:10.3f}"),
            ("examples a second", f"{self.facts['batch_size'] / self.step_seconds:10,.0f}"),
            (f"{self.facts['steps']:,} steps", f"{self.hours:10.2f} hours"),
        ]
        return rows if price is None else [*rows, ("cost", f"{self.cost(price):10,.2f} at {price:g} a chip-hour")]

    def draw(self, path: Path) -> None:
        """Memory by kind beside the device's, and the step by what limits it."""
        from jmm.evaluation.pictures import COLORS, INK, PALE, new_figure

        figure = new_figure(9.0, 3.4)
        most: float | None
        bars: list[tuple[str, Mapping[str, float], float, float | None]] = [
            ("memory of a device, GiB", self.memory, 1 / GIB, self.memory_there / GIB)
        ]
        if self.fits:
            bars.append(("step at best, ms", self.seconds, 1e3, None))
        for row, (title, parts, unit, most) in enumerate(bars):
            axes, start = figure.add_subplot(len(bars), 1, row + 1), 0.0
            for index, (name, width) in enumerate(_large({name: size * unit for name, size in parts.items()})):
                label = f"{name} {width:.3g}"
                axes.barh([0], [width], left=[start], color=COLORS[index % len(COLORS)], edgecolor="white", label=label)
                start += width
            if most is not None:
                axes.axvline(most, color=INK, linewidth=1.5)
                axes.text(most, 0.45, f" {most:.4g}", color=PALE, va="bottom", ha="left", fontsize=8)
            axes.set_xlim(0, 1.08 * max(start, most or 0.0))
            axes.set_yticks([])
            axes.set_title(title, loc="left", fontsize=9, color=INK)
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=5, fontsize=7, frameon=False)
            for side in ("top", "right", "left"):
                axes.spines[side].set_visible(False)
        figure.suptitle(f"{self.facts['experiment']} on {self.slice}", fontsize=10, color=INK)
        figure.savefig(path, dpi=150)


def _large(parts: dict[str, float]) -> list[tuple[str, float]]:
    """The largest first; what no one would see in a picture is one part."""
    least = sum(parts.values()) / 50
    large = sorted(((name, size) for name, size in parts.items() if size >= least), key=lambda part: -part[1])
    rest = sum(size for size in parts.values() if size < least)
    return [*large, ("other", rest)] if rest else large
