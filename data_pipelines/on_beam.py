"""The same work on many machines: an Apache Beam pipeline, on Dataflow or whatever its flags name."""

import shlex
from collections.abc import Callable

from jmm.errors import UserError


def each(work: Callable[[int], object], numbers: list[int], flags: str) -> None:
    """Calls `work` with every number, somewhere, and waits for the end of it.

    Args:
      work: what workers can import: a function of a module, or a `partial` of one.
      numbers: what it is called with.
      flags: of Beam, as on a command line: `--runner=DataflowRunner --project=…`; none: here, in this process.

    Raises:
      UserError: Beam is not installed, a flag that it does not know, or work that failed.
    """
    try:
        import apache_beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError as error:
        raise UserError(f"--beam needs Apache Beam, as the README says under its own data ({error})") from error
    options = PipelineOptions(shlex.split(flags))
    known = options.get_all_options(retain_unknown_options=False)
    if unknown := sorted(set(options.get_all_options(retain_unknown_options=True)) - set(known)):
        raise UserError(f"--beam {flags}: Beam knows no --{unknown[0]}")
    try:
        with apache_beam.Pipeline(options=options) as pipeline:
            # Shuffled anew: else one worker would be given all that one source made.
            _ = pipeline | apache_beam.Create(numbers) | apache_beam.Reshuffle() | "write" >> apache_beam.Map(work)
    except Exception as error:
        raise UserError(f"the Beam pipeline failed ({error}); the same command goes on") from error
