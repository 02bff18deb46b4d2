"""Features of a frozen image encoder, made once, and read instead of pixels."""

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from input_pipeline import digests, features, images, records
from input_pipeline.errors import UserError
from input_pipeline.locks import lock
from plan_jax.models.two_towers import image_encoder
from plan_jax.models.weights.files import WeightsError
from plan_jax.models.weights.load import LoadedEncoder, load_image
from plan_jax.runtime import processes
from plan_jax.runtime.logging import log
from plan_jax.runtime.mesh import batch_sharding, everywhere, make_mesh, shared_rows
from plan_jax.runtime.workdir import Workdir

# Where the weights lie, and what learns on the features, or is refused with them.
_APART = ("weights", "adapter", "lora_rank", "lora_blocks", "spread_stage")


class Source(NamedTuple):
  """Records whose features are wanted.

  Attributes:
    records, features: their folders.
    splits: those that are read; none: all, of the run's own data, whose training split is wanted in
      mirror images too, where the run has them.
  """

  records: Path
  features: Path
  splits: tuple[str, ...] = ()


class Job(NamedTuple):
  """Features of a shard that are to be made.

  Attributes:
    shard: of the records.
    count: of its records.
    folder: of the features.
    views: 1, or 2 where mirror images are wanted too.
  """

  shard: Path
  count: int
  folder: Path
  views: int


def store(config: ConfigDict, sets: Sequence[Source], workdir: Workdir) -> None:
  """Makes the features that are missing of sets.

  Where the run in `workdir` has begun, the weights must be those that it began with. Each process
  takes its share of the shards. Says beforehand how many bytes an image takes.

  Raises FeaturesError where features that are there are of something else, LockedError where
  another run makes some in the same folder, WeightsError, and UserError where the disk has no room.
  """
  model = image_encoder(config.model.image).clone(dtype=jnp.dtype(config.model.dtype))
  try:
    encoder = load_image(config.model.image.weights, model, key="config.model.image")
  except WeightsError as error:
    if not workdir.begun():
      raise
    raise WeightsError(
      f"{error}; the run in {workdir.path} has its own copy: config.data.store_features=False"
      " encodes images as they come"
    ) from error
  if workdir.begun():
    _require_same_weights(config, encoder, workdir)
  fingerprint = _fingerprint(config, encoder)
  with contextlib.ExitStack() as held:
    for folder in sorted({job.folder for job in _missing(config, sets, fingerprint)}):
      processes.on_primary(partial(held.enter_context, lock(folder)))
    if jobs := _missing(config, sets, fingerprint):  # but for what another run has made by now
      variables = {"params": encoder.params, "batch_stats": encoder.batch_stats}
      _make(config, _on_devices(model, variables), jobs, fingerprint)
    processes.assert_equal("the encoder of the stored features", fingerprint)  # all are done


def _missing(config: ConfigDict, sets: Sequence[Source], fingerprint: str) -> list[Job]:
  """Lists the features that are to be made, the same in all processes."""
  jobs = []
  for source in sets:
    for split, shards in records.shard_lengths(source.records).items():
      if source.splits and split not in source.splits:
        continue
      mirrors = config.data.flip_fraction and split == "train" and not source.splits
      views = 2 if mirrors else 1
      jobs += [
        Job(shard, count, source.features, views)
        for shard, count in shards
        if not features.is_stored(source.features, shard, fingerprint, views)
      ]
  # Before one of the others makes more of them.
  processes.assert_equal("the list of features to make", str(jobs))
  return jobs


def _on_devices(model: nn.Module, variables: dict) -> Callable:
  """Makes the function of [B, S, S, 1] to features [B, P, C]; the devices here share the batch."""
  mesh = make_mesh(-1, 1, jax.local_devices())
  whole = everywhere(mesh)

  def encode(variables, image):
    x = model.apply(variables, image)
    return x.reshape(len(x), -1, x.shape[-1]).astype(jnp.float16)

  function = jax.jit(encode, in_shardings=(whole, batch_sharding(mesh)))
  # An argument, for what a function closes over is compiled into its program.
  return partial(function, jax.device_put(variables, whole))


def _make(config: ConfigDict, encode: Callable, jobs: list[Job], fingerprint: str) -> None:
  side = config.model.image_px
  batch = shared_rows(config.evaluation.batch_size, jax.local_device_count())
  _, pixels, channels = jax.eval_shape(encode, np.zeros((batch, side, side, 1), np.float32)).shape
  view_bytes = 2 * pixels * channels
  _require_room(jobs, view_bytes)
  total = sum(job.count * job.views for job in jobs)
  log.info(
    f"storing features of {total} images and mirror images, {view_bytes / 1e3:,.0f} kB each"
    f" ({pixels} x {channels} values of 2 bytes), {total * view_bytes / 1e9:,.2f} GB"
  )
  mine = jobs[jax.process_index() :: jax.process_count()]
  with (
    ThreadPoolExecutor(config.data.threads) as pool,
    tqdm(
      total=sum(job.count * job.views for job in mine),
      desc="features",
      unit="image",
      mininterval=1,
      disable=not processes.is_primary(),
    ) as bar,
  ):
    for job in mine:
      squares = _squares(job, side, batch, pool)
      features.write(job.folder, job.shard, _blocks(encode, squares, job.views, bar), fingerprint)


def _squares(
  job: Job, side_px: int, batch: int, pool: Executor
) -> Iterator[tuple[int, np.ndarray]]:
  """Yields the images of a shard, [batch, S, S, 1], and how many of them there are."""
  source = records.RecordSource.of_shard(job.shard, job.count)

  def fit(number: int) -> np.ndarray:
    return images.fit(images.decode_example(source[number]), side_px)

  for start in range(0, job.count, batch):
    numbers = range(start, min(start + batch, job.count))
    squares = np.zeros((batch, side_px, side_px, 1), np.float32)  # all of one size: one compilation
    squares[: len(numbers)] = np.stack(list(pool.map(fit, numbers)))[..., None]
    yield len(numbers), squares


def _blocks(encode: Callable, squares, views: int, bar: tqdm) -> Iterator[np.ndarray]:
  """Yields the block of each record; the devices work while the next images are decoded."""

  def finish(count, encoded):
    bar.update(count * views)
    yield from np.stack([np.asarray(x) for x in encoded], 1)[:count]

  before = None
  for count, square in squares:
    now = count, [encode(x) for x in (square, square[:, :, ::-1])[:views]]
    if before:
      yield from finish(*before)
    before = now
  if before:
    yield from finish(*before)


def _require_same_weights(config: ConfigDict, encoder: LoadedEncoder, workdir: Workdir) -> None:
  """Raises WeightsError where the run's heads have learned on another encoder."""
  before = digests.read_sealed(workdir.weights, "give it back from a copy")["image_encoder"]
  if encoder.provenance["sha256"] != before["sha256"]:
    raise WeightsError(
      f"config.model.image.weights: {config.model.image.weights} has changed since the run in"
      f" {workdir.path} began: put back the file with sha256 {before['sha256'][:12]}, evaluate with"
      " config.data.store_features=False, or train in a new --workdir"
    )


def _require_room(jobs: list[Job], view_bytes: int) -> None:
  """Raises UserError where the features do not fit on their disks."""
  for folder in sorted({job.folder for job in jobs}):
    needed = view_bytes * sum(job.count * job.views for job in jobs if job.folder == folder)
    folder.mkdir(parents=True, exist_ok=True)
    if needed > (free := shutil.disk_usage(folder).free):
      raise UserError(
        f"{folder}: the features take {needed / 1e9:,.1f} GB, and {free / 1e9:,.1f} GB are free:"
        " name a folder with more room in config.data.features, lower config.model.image_px, or"
        " encode images as they come (config.data.store_features=False)"
      )


def _fingerprint(config: ConfigDict, encoder: LoadedEncoder) -> str:
  """Computes 16 hex digits of the encoder's weights and settings, the image size and the dtype."""
  digest = hashlib.blake2b(digest_size=8)
  image = {name: x for name, x in config.model.image.to_dict().items() if name not in _APART}
  settings = [image, config.model.image_px, config.model.dtype]
  digest.update(json.dumps(settings, sort_keys=True).encode())
  for path, x in jax.tree.leaves_with_path((encoder.params, encoder.batch_stats)):
    digest.update(jax.tree_util.keystr(path).encode())
    digest.update(np.ascontiguousarray(x))
  return digest.hexdigest()
