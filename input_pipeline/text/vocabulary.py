"""Vocabularies of local Hugging Face folders, read as data: nothing in them is executed."""

import json
from pathlib import Path

from input_pipeline import json_object
from input_pipeline.errors import UserError
from input_pipeline.files import replace_text
from input_pipeline.text import diagnostic_terms, reports

NAMES = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_SWITCHES = ("do_lower_case", "tokenize_chinese_chars", "strip_accents")
_OTHERS = ("<pad>", "<unk>", "<s>", "</s>", "<mask>")  # of RoBERTa and its kin


class TokenizerError(UserError):
  """A tokenizer folder lacks something; the message names folder and remedy."""


def read(folder: Path) -> tuple:
  """Reads a tokenizer as `read_backend` does, and its special tokens by the names of transformers.

  Raises TokenizerError also where the vocabulary has no [CLS], [SEP] or [PAD].
  """
  backend, settings = read_backend(folder)
  return backend, _special_names(folder, settings, backend.get_vocab())


def read_backend(folder: Path) -> tuple:
  """Reads tokenizer.json, or vocab.txt as BERT's WordPiece with the case of its settings.

  A spiece.model alone is read with the library sentencepiece.

  Returns the Tokenizer of the library tokenizers, without padding and truncation, and the content
  of tokenizer_config.json. The class that it names is not used.

  Raises TokenizerError, naming the folder, where there is none of `FILES`, one is broken, both
  disagree, or the vocabulary has a token of several words.
  """
  folder = Path(folder)
  if not folder.is_dir():
    raise TokenizerError(
      f"there is no folder {folder}, and nothing is downloaded: name one on this machine"
    )
  settings = _settings(folder / "tokenizer_config.json")
  path = next((folder / name for name in _READERS if (folder / name).is_file()), None)
  if path is None:
    raise TokenizerError(
      f"{folder} holds none of {', '.join(FILES)}: name a local Hugging Face folder"
    )
  try:
    backend = _READERS[path.name](path, settings)
  except TokenizerError:
    raise
  except Exception as error:  # the library has no class of its own
    raise TokenizerError(f"{path} is no whole tokenizer: {error}; fetch it again") from error
  backend.no_padding()
  backend.no_truncation()
  backend.encode_special_tokens = True  # "[SEP]" in a report is its letters
  for token in backend.get_added_tokens_decoder().values():
    if not token.special and len(reports.words(token.content)) > 1:
      raise TokenizerError(
        f"{path}: the added token {token.content!r} holds several words, which could not be told"
        " apart: take it out"
      )
  return backend, settings


def knows(backend, text: str, *, is_general: bool = False) -> bool:
  """Tells whether the vocabulary knows a word of a text.

  It does where one token of two letters or more is the word, or a token within has four letters: of
  single letters and the like any nonsense can be spelt. A general vocabulary, which was not made of
  the reports that were trained on, cuts their words as short ("ed", "##ema"): there a diagnostic
  term counts however it is cut.
  """
  unknown = getattr(backend.model, "unk_token", "<unk>")
  for start, end in reports.words(text):
    word = text[start:end]
    encoding = backend.encode(word, add_special_tokens=False)
    if unknown not in encoding.tokens:
      lengths = [b - a for a, b in encoding.offsets]
      if max(lengths, default=0) >= (2 if len(lengths) == 1 else 4):
        return True
      if is_general and lengths and diagnostic_terms.load().lists(word):
        return True
  return False


def save(backend, settings: dict, folder: Path) -> None:
  """Saves a tokenizer as transformers reads it. Raises DiskError."""
  folder = Path(folder)
  replace_text(folder / "tokenizer.json", backend.to_str(pretty=True))
  settings = {"tokenizer_class": "PreTrainedTokenizerFast"} | settings
  # Written last: its presence says that the folder is whole.
  replace_text(folder / "tokenizer_config.json", json.dumps(settings, indent=2) + "\n")


def _whole(path: Path, settings: dict):
  from tokenizers import Tokenizer

  lower = _lowers(json_object.read(path, TokenizerError).get("normalizer") or {})
  wanted = settings.get("do_lower_case")
  if None not in (lower, wanted) and lower != wanted:
    raise TokenizerError(
      f"{path} has lowercase {lower}, tokenizer_config.json do_lower_case {wanted}: set both as the"
      " weights were trained"
    )
  return Tokenizer.from_file(str(path))


def _lowers(normalizer: dict) -> bool | None:
  """Tells whether a normalizer makes all letters small, None where no part of it says."""
  if normalizer.get("type") == "Lowercase":
    return True
  parts = [_lowers(part) for part in normalizer.get("normalizers", ())]
  parts.append(normalizer.get("lowercase"))
  return True in parts or (False if False in parts else None)


def _bare(path: Path, settings: dict):
  from tokenizers import BertWordPieceTokenizer, Tokenizer

  tokenizer = BertWordPieceTokenizer.from_file(
    str(path),
    lowercase=settings.get("do_lower_case", True),
    handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
    strip_accents=settings.get("strip_accents"),
  )
  return Tokenizer.from_str(tokenizer.to_str())


def _sentencepiece(path: Path, settings: dict):
  try:
    from sentencepiece import sentencepiece_model_pb2
  except ImportError as error:
    raise TokenizerError(
      f"{path} is there without tokenizer.json: pip install sentencepiece protobuf, or save"
      " tokenizer.json beside it"
    ) from error
  from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

  model = sentencepiece_model_pb2.ModelProto.FromString(path.read_bytes())
  tokens = [(token.piece, token.score) for token in model.pieces]
  trainer = model.trainer_spec
  tokenizer = Tokenizer(models.Unigram(tokens, trainer.unk_id, trainer.byte_fallback))
  if charsmap := model.normalizer_spec.precompiled_charsmap:
    tokenizer.normalizer = normalizers.Precompiled(charsmap)
  tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
  return tokenizer


_READERS = {"tokenizer.json": _whole, "vocab.txt": _bare, "spiece.model": _sentencepiece}
FILES = tuple(_READERS)  # any of which is a vocabulary


def _special_names(folder: Path, settings: dict, tokens: dict[str, int]) -> dict[str, str]:
  """Finds the special tokens: those that the settings name, else the usual."""
  names = {}
  for name, *usual in zip(NAMES, SPECIAL, _OTHERS, strict=True):
    given = settings.get(name)
    known = [token for token in ([given] if given else usual) if token in tokens]
    if known:
      names[name] = known[0]
    elif name in ("pad_token", "cls_token", "sep_token"):
      raise TokenizerError(
        f"{folder}: the vocabulary of {len(tokens)} tokens has no {given or usual[0]}; one as of"
        " BERT, with [CLS], [SEP] and [PAD], is needed"
      )
  return names


def _settings(path: Path) -> dict:
  """Reads the settings, empty without; the name of a token may stand under "content"."""
  settings = json_object.read(path, TokenizerError) if path.is_file() else {}
  settings = {name: value for name, value in settings.items() if value is not None}
  for name in NAMES:
    if isinstance(settings.get(name), dict):
      settings[name] = settings[name].get("content")
  for kind, names in ((str, NAMES), (bool, _SWITCHES)):
    for name in names:
      if not isinstance(settings.get(name, kind()), kind):
        raise TokenizerError(
          f"{path}: {name} is {settings[name]!r}, of type {type(settings[name]).__name__}, not"
          f" {kind.__name__}; fetch it again"
        )
  return settings
