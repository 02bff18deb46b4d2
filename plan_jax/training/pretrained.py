"""Foreign weights, and the tokenizer that comes with them, as a config names them."""

from pathlib import Path

from plan_jax.models.two_towers import image_encoder, text_encoder
from plan_jax.models.weights.files import WeightsError
from plan_jax.models.weights.load import LoadedEncoder, load_image, load_text


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

  Raises WeightsError for text weights without a vocabulary, which would mean nothing to them.
  """
  folder = config.model.text.weights
  if config.text.tokenizer or not folder:
    return config.text.tokenizer
  if any((Path(folder) / name).is_file() for name in ("tokenizer.json", "vocab.txt")):
    return folder
  raise WeightsError(
    f"config.model.text.weights {folder} comes without a vocabulary (tokenizer.json or vocab.txt):"
    " name the folder of the one it was trained with in config.text.tokenizer"
  )
