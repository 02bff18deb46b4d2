"""Foreign weights, and the tokenizer that comes with them, as a config names them."""

from pathlib import Path

from ml_collections import ConfigDict

from input_pipeline.text.tokenizer import Tokenizer
from input_pipeline.text.vocabulary import TokenizerError
from plan_jax.models.two_towers import image_encoder, text_encoder
from plan_jax.models.weights.files import WeightsError, read_settings
from plan_jax.models.weights.load import LoadedEncoder, load_image, load_text
from plan_jax.models.weights.sizes import TEXT_SETTINGS, text_sizes
from plan_jax.runtime.logging import log
from plan_jax.runtime.workdir import Workdir


def with_sizes(config: ConfigDict, workdir: Workdir) -> ConfigDict:
  """Gives the text encoder the sizes of its weights, where they lie in a folder with a config.json.

  What that changes is logged. A run that goes on keeps its sizes, for the folder may be gone.

  Raises WeightsError where config.json is broken.
  """
  text = config.get("model", {}).get("text", {})  # not checked yet: the sizes are to be first
  weights = text.get("weights")
  if not weights:
    return config
  before = workdir.load_config().model.text if workdir.begun() else {}
  if before.get("weights") == weights:
    sizes = {name: before[name] for name in TEXT_SETTINGS}
  else:
    sizes = text_sizes(read_settings(weights))
  changed = {name: size for name, size in sizes.items() if size != text.get(name)}
  if not changed:
    return config
  config = ConfigDict(config.to_dict())
  config.model.text.update(changed)
  listed = ", ".join(f"{name}={size} (was {text.get(name)})" for name, size in changed.items())
  log.info(f"config.model.text as {weights} has it: {listed}")
  return config


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
    raise WeightsError("\n".join(problems))
  return loaded


def tokenizer_folder(config) -> str:
  """Returns the folder of config.text.tokenizer, else of the text weights; empty: train one.

  Raises WeightsError for text weights that are not there, or come without a vocabulary, which would
  mean nothing to them.
  """
  folder = config.model.text.weights
  if config.text.tokenizer or not folder:
    return config.text.tokenizer
  if any((Path(folder) / name).is_file() for name in ("tokenizer.json", "vocab.txt")):
    return folder
  if not Path(folder).exists():
    raise WeightsError(
      f"config.model.text.weights: there is no {folder}, and nothing is downloaded: name a"
      " checkpoint file or a Hugging Face folder on this machine"
    )
  raise WeightsError(
    f"config.model.text.weights {folder} comes without a vocabulary (tokenizer.json or vocab.txt):"
    " name the folder of the one it was trained with in config.text.tokenizer"
  )
