"""Serialization of an example as one tf.train.Example, the payload of a record."""

import functools
import io
from collections.abc import Iterable

import numpy as np
import tensorflow_datasets as tfds

from input_pipeline import example as example_lib
from input_pipeline.example import Entity, Example, Region

_TEXTS = ("image_id", "study_id", "patient_id", "view", "text_kind")
_DECODERS = {"image": tfds.decode.SkipDecoding()}


@functools.cache
def features() -> tfds.features.FeaturesDict:
  """Returns the TFDS features of one record: an Example with its nested parts laid flat."""

  def texts():
    return tfds.features.Sequence(tfds.features.Text())

  return tfds.features.FeaturesDict(
    {
      "image": tfds.features.Image(shape=(None, None, 1)),
      "width": tfds.features.Scalar(np.int32),
      "height": tfds.features.Scalar(np.int32),
      **{name: tfds.features.Text() for name in _TEXTS},
      "section_names": texts(),
      "section_texts": texts(),
      "sentences": texts(),
      "label_names": texts(),
      "label_values": tfds.features.Tensor(shape=(None,), dtype=np.int32),
      "region_phrases": texts(),
      "region_labels": texts(),
      "region_masks": tfds.features.Sequence(tfds.features.Scalar(np.object_)),
      "boxes": tfds.features.Tensor(shape=(None, 4), dtype=np.float32),
      "box_region": tfds.features.Tensor(shape=(None,), dtype=np.int32),
      "entity_labels": texts(),
      "entity_spans": tfds.features.Tensor(shape=(None, 3), dtype=np.int32),
    }
  )


@functools.cache
def _serializer() -> tfds.core.example_serializer.ExampleSerializer:
  return tfds.core.example_serializer.ExampleSerializer(features().get_serialized_info())


def encode(example: Example) -> bytes:
  """Serializes an example; equal examples give equal bytes.

  Raises ValueError, naming the field, where the example contradicts itself (example.check).
  """
  example_lib.check(example)
  boxes = [region.boxes for region in example.regions]
  serialized = features().encode_example(
    {
      "image": io.BytesIO(example.image),
      "width": example.width,
      "height": example.height,
      **{name: getattr(example, name) for name in _TEXTS},
      "section_names": list(example.sections.keys()),
      "section_texts": list(example.sections.values()),
      "sentences": list(example.sentences),
      "label_names": list(example.labels.keys()),
      "label_values": np.array(list(example.labels.values()), np.int32),
      "region_phrases": [region.phrase for region in example.regions],
      "region_labels": [region.label for region in example.regions],
      "region_masks": [region.mask for region in example.regions],
      "boxes": np.concatenate(boxes) if boxes else np.zeros((0, 4), np.float32),
      "box_region": np.repeat(np.arange(len(boxes), dtype=np.int32), [len(b) for b in boxes]),
      "entity_labels": [entity.label for entity in example.entities],
      "entity_spans": np.array(
        [(entity.sentence, entity.start, entity.end) for entity in example.entities], np.int32
      ).reshape(-1, 3),
    }
  )
  # A proto map has no order of its own: without `deterministic` the bytes differ between processes.
  return _serializer().get_tf_example(serialized).SerializeToString(deterministic=True)


def decode(payload: bytes) -> Example:
  """Parses a serialized tf.train.Example; the image stays encoded.

  Raises KeyError, AttributeError or ValueError (also protobuf's DecodeError) where the bytes are
  no record of this version; RecordSource turns them into a RecordError.
  """
  fields = features().deserialize_example_np(payload, decoders=_DECODERS)
  boxes, box_region = fields["boxes"], fields["box_region"]
  regions = zip(
    fields["region_phrases"], fields["region_labels"], fields["region_masks"], strict=True
  )
  return Example(
    image=fields["image"],
    width=int(fields["width"]),
    height=int(fields["height"]),
    sections=dict(zip(_text(fields["section_names"]), _text(fields["section_texts"]), strict=True)),
    sentences=tuple(_text(fields["sentences"])),
    labels=dict(zip(_text(fields["label_names"]), fields["label_values"].tolist(), strict=True)),
    regions=tuple(
      Region(phrase.decode(), label.decode(), boxes[box_region == i], bytes(mask))
      for i, (phrase, label, mask) in enumerate(regions)
    ),
    entities=tuple(
      Entity(*span, label)
      for span, label in zip(
        fields["entity_spans"].tolist(), _text(fields["entity_labels"]), strict=True
      )
    ),
    **{name: fields[name].decode() for name in _TEXTS},
  )


def _text(values: Iterable[bytes]) -> list[str]:
  return [value.decode() for value in values]
