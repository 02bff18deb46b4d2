"""Foreign weights, and the tokenizer that comes with them, as a config names them."""

from collections.abc import Collection
from pathlib import Path

from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from input_pipeline import terminal
from input_pipeline.text.tokenizer import Tokenizer
from input_pipeline.text.vocabulary import FILES, TokenizerError
from plan_jax.models.two_towers import image_encoder, text_encoder
from plan_jax.models.weights.files import WeightsError
from plan_jax.models.weights.load import LoadedEncoder, load_image, load_text
from plan_jax.models.weights.settings import CHOSEN, KEYS, image_settings, text_settings
from plan_jax.runtime.logging import log
from plan_jax.runtime.workdir import Workdir


def with_settings(
  config: ConfigDict, workdir: Workdir | None, given: Collection[str] = ()
) -> ConfigDict:
  """Gives the encoders the settings that the folders of their weights tell.

  A run that goes on keeps its settings, for a folder may be gone.

  Args:
    config: of the run; not checked yet, for these settings are to be in it first.
    workdir: of the run; None for none.
    given: keys that the command line sets, e.g. "model.image_px", which stay as they are.

  Raises WeightsError where a folder's files are broken, or contradict what is given. The side of an
  image and the number of stages are a choice, which no folder contradicts.
  """
  model = config.get("model", ConfigDict()).to_dict()
  now, settings, contradictions = flatten_dict(model, sep="."), {}, []
  for encoder, read in (("image", image_settings), ("text", text_settings)):
    weights = now.get(f"{encoder}.weights")
    if not weights:
      continue
    before = _settings_before(workdir, encoder, weights)
    theirs = {key: x for key, x in (before or read(weights)).items() if x != now.get(key)}
    if config.get("runlocal"):
      theirs.pop("image_px", None)
    settings |= {key: x for key, x in theirs.items() if f"model.{key}" not in given}
    contradictions += [
      f"config.model.{key}={now[key]}, {x} in {weights}"
      for key, x in theirs.items()
      if key not in settings and key not in CHOSEN and not before
    ]
  if contradictions:
    raise WeightsError(
      f"the command line contradicts the weights: {'; '.join(contradictions)}: leave these keys"
      " out, or name other weights"
    )
  if not settings:
    return config
  config = ConfigDict(config.to_dict())
  config.model.update_from_flattened_dict(settings)
  return config


def log_settings(written: ConfigDict, config: ConfigDict) -> None:
  """Logs what `with_settings` changed, for when the config is known to be fit."""
  before, now = (flatten_dict(c.model.to_dict(), sep=".") for c in (written, config))
  changed = [f"{k}={x} (was {before.get(k)})" for k, x in now.items() if x != before.get(k)]
  if changed:
    log.info(f"config.model as its weights have it: {terminal.join(changed)}")


def _settings_before(workdir: Workdir | None, encoder: str, weights: str) -> dict:
  """Returns the settings that a run here began with, empty if it has begun without the weights."""
  if workdir is None or not workdir.begun():
    return {}
  before = flatten_dict(workdir.load_config().model.to_dict(), sep=".")
  if before.get(f"{encoder}.weights") != weights:
    return {}
  return {key: before[key] for key in KEYS[encoder] if key in before}


def check(config: ConfigDict) -> None:
  """Reads the tokenizer and the weights that a run starts from, whole, before any work.

  Raises TokenizerError or WeightsError, with the keys to set.
  """
  folder, size = tokenizer_folder(config), None
  key = "text.tokenizer" if config.text.tokenizer else "model.text.weights"
  try:
    size = Tokenizer(Path(folder)).vocabulary_size if folder else None
  except TokenizerError as error:
    raise TokenizerError(f"config.{key}: {error}") from error
  load_encoders(config.model, size)


def load_encoders(model, vocabulary_size: int | None = None) -> dict[str, LoadedEncoder]:
  """Loads the encoders that `config.model` starts from foreign weights, by name in the parameters.

  Without a vocabulary size that of the text is as the file has it.

  Raises WeightsError for all that does not fit, with the keys to set.
  """
  text = text_encoder(model.text, vocabulary_size or 0)
  loaded, problems = {}, []
  for name, load, weights, encoder, key in (
    ("image_encoder", load_image, model.image.weights, image_encoder(model.image), "image"),
    ("text_encoder", load_text, model.text.weights, text, "text"),
  ):
    try:
      if weights:
        loaded[name] = load(weights, encoder, key=f"config.model.{key}")
    except WeightsError as error:
      problems.append(str(error))
  if problems:
    raise WeightsError("; ".join(problems))
  return loaded


def tokenizer_folder(config) -> str:
  """Returns the folder of config.text.tokenizer, else of the text weights; empty: train one.

  Raises TokenizerError where there is no such folder, and WeightsError for text weights that are
  not there, or come without a vocabulary, which would mean nothing to them.
  """
  folder, given = config.model.text.weights, config.text.tokenizer
  if given and not Path(given).is_dir():
    raise TokenizerError(
      f"config.text.tokenizer: there is no folder {given}, and nothing is downloaded: name one on"
      " this machine"
    )
  if given or not folder:
    return given
  if any((Path(folder) / name).is_file() for name in FILES):
    return folder
  if not Path(folder).exists():
    raise WeightsError(
      f"config.model.text.weights: {folder} is not there, and nothing is downloaded: name a"
      " checkpoint file or a Hugging Face folder on this machine"
    )
  raise WeightsError(
    f"config.model.text.weights {folder} comes without a vocabulary ({', '.join(FILES)}):"
    " name the folder of the one it was trained with in config.text.tokenizer"
  )
