"""Maps in colour on their images."""

import cv2
import numpy as np

# 256 x (blue, green, red), perceptually even from black over violet and orange to yellow.
COLOURS = cv2.applyColorMap(np.arange(256, dtype=np.uint8)[None], cv2.COLORMAP_INFERNO)[0]
OPACITY = 0.7


def coloured(image: np.ndarray, heatmap: np.ndarray, opacity: float = OPACITY) -> np.ndarray:
  """Mixes an image (uint8 [H, W]) with a map (float [h, w] in [0, 1]) as the page does, to BGR."""
  height, width = image.shape
  heatmap = np.clip(np.nan_to_num(np.asarray(heatmap, np.float32)), 0, 1)
  heatmap = cv2.resize(heatmap, (width, height), interpolation=cv2.INTER_LINEAR)
  share = (opacity * np.minimum(1, 2 * heatmap))[..., None]
  colour = COLOURS[np.round(255 * heatmap).astype(np.uint8)]
  mixed = share * colour + (1 - share) * image[..., None]
  return np.round(mixed).astype(np.uint8)
