"""Converts a data set with Apache Beam: the bytes of input_pipeline.conversion, by many hosts.

  python -m launch.convert_beam --dataset=folder --source=/nfs/raw --out=/nfs/out -- --runner=...

What follows `--` goes to Beam. The source and the output are folders that all workers see under the
same paths, and plan_jax is installed there. Where it was stopped, the same command goes on, with
Beam or without.
"""

import os
import pickle
import shutil
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

from input_pipeline.command_line import split_rest
from input_pipeline.conversion import command, convert, workers
from input_pipeline.conversion.job import Job, Shard

try:
  import apache_beam as beam
  from apache_beam.options.pipeline_options import PipelineOptions
except ModuleNotFoundError as error:
  remedy = f"Apache Beam is missing ({error}); in an environment of its own: pip install '.[beam]'"
  if __name__ == "__main__":
    raise SystemExit(f"error: {remedy}") from None
  raise ImportError(remedy) from error


class WriteShard(beam.DoFn):
  """Calls a job with a shard; both lie in files, as a shard's images are too large for a graph."""

  def __init__(self, job: str):
    """Args: job: path of the pickled job."""
    self._path = job

  def setup(self) -> None:
    """Reads the job, once a worker."""
    workers.set_up()
    self._job: Job = pickle.loads(Path(self._path).read_bytes())

  def process(self, shard: str) -> None:
    """Args: shard: path of the pickled shard."""
    self._job(pickle.loads(Path(shard).read_bytes()))


def results(
  job: Job, shards: list[Shard], flags: Sequence[str]
) -> Iterator[tuple[Shard, list[dict[str, str]]]]:
  """Runs the job on every shard as one Beam pipeline; results come when all of it has ended.

  All shards are written into one folder; `flags` are Beam's own, e.g. ["--runner=DirectRunner"].
  Raises the error of the runner where a worker failed, ConvertError where a shard is missing
  although the runner reported no failure (a job that was cancelled).
  """
  if not shards:
    return
  plan = shards[0].path.parent / f".plan-{uuid.uuid4().hex}"
  plan.mkdir()
  try:
    (plan / "job").write_bytes(pickle.dumps(job))
    names = [str(plan / shard.path.name) for shard in shards]
    for name, shard in zip(names, shards, strict=True):
      Path(name).write_bytes(pickle.dumps(shard))
    with beam.Pipeline(options=PipelineOptions(list(flags))) as pipeline:
      _ = (
        pipeline
        | "Shards" >> beam.Create(names)
        | "Spread" >> beam.Reshuffle()
        | "Write" >> beam.ParDo(WriteShard(str(plan / "job")))
      )
  finally:
    shutil.rmtree(plan)
  for shard in shards:
    index = shard.index()
    if index is None:
      raise convert.ConvertError(
        f"{shard.path}: the pipeline ended without writing it; run the same command again"
      )
    yield shard, index["skipped"]


def main(argv: Sequence[str] | None = None) -> None:
  """Prints the summary, or one error with exit status 1."""
  own, rest = split_rest(argv)
  options = command.parser("python -m launch.convert_beam", __doc__).parse_args(own)

  options.out = os.path.abspath(options.out)  # a worker stands elsewhere
  options.source = options.source and os.path.abspath(options.source)

  def runner(job: Job, shards: list[Shard]) -> Iterator[tuple[Shard, list[dict[str, str]]]]:
    return results(job, shards, rest)

  command.run(**vars(options), runner=runner, progress=False)


if __name__ == "__main__":
  main()
