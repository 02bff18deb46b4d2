"""Speed of the conversion in images a second, beside bare loops.

The images are as large as MIMIC-CXR-JPG's, 2544 x 3056 grey JPEG of quality 95 and about 1.6 MB: a
phantom image, enlarged, and noise of a strength that gives that size. Rows of one worker count take
turns on the same files, which the system keeps in memory: no disk is measured.

  naive loop      OpenCV: decode all pixels, reduce, encode as JPEG
  bare loop       Pillow: decode at a half, OpenCV: reduce, encode as JPEG
  convert         the converter: checks, texts, records with checksums, shards and indices too

  python -m benchmarks.convert --json=out.json
"""

import argparse
import concurrent.futures
import csv
import io
import json
import multiprocessing
import os
import resource
import statistics
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from tabulate import tabulate

from input_pipeline import images
from input_pipeline.conversion import convert
from input_pipeline.phantom import radiograph
from input_pipeline.readers import folder

_SIZE = (2544, 3056)
_NOISE = 1.85  # standard deviation, in grey levels
_QUALITY = [cv2.IMWRITE_JPEG_QUALITY, 95]


def draw(raw: Path, count: int, rows: int, size: tuple[int, int] = _SIZE) -> float:
  """Writes `count` images and a manifest that names them in turn, `rows` rows.

  Returns the images' mean size in bytes.
  """
  raw.mkdir(parents=True)
  examples = [radiograph.example(0, i, 512) for i in range(count)]
  for i, example in enumerate(examples):
    pixels = cv2.resize(images.decode(example.image), size, interpolation=cv2.INTER_CUBIC)
    noise = np.empty(pixels.shape, np.int8)
    cv2.setRNGSeed(i)
    cv2.randn(noise, 0, _NOISE)
    cv2.imwrite(str(raw / f"{i}.jpg"), cv2.add(pixels, noise, dtype=cv2.CV_8U), _QUALITY)
  with open(raw / folder.MANIFEST, "w", newline="", encoding="utf-8") as file:
    writer = csv.writer(file)
    writer.writerow(["image", "image_id", "split", "text"])
    for row in range(rows):
      text = " ".join(examples[row % count].sentences)
      writer.writerow([f"{row % count}.jpg", row, "train", text])
  return statistics.mean((raw / f"{i}.jpg").stat().st_size for i in range(count))


def naive(encoded: bytes, image_px: int) -> bytes:
  """Decodes all pixels, then reduces."""
  pixels = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_GRAYSCALE)
  return _jpeg(_reduced(pixels, image_px))


def bare(encoded: bytes, image_px: int) -> bytes:
  """Does no more than what the conversion does to the pixels of these images."""
  return _jpeg(_reduced(_decoded_at(encoded, 2), image_px))


def _decoded_at(encoded: bytes, scale: int) -> np.ndarray:
  with Image.open(io.BytesIO(encoded)) as image:
    image.draft("L", (image.width // scale, image.height // scale))
    return np.asarray(image)


def _reduced(pixels: np.ndarray, image_px: int) -> np.ndarray:
  height, width = pixels.shape
  scale = image_px / min(height, width)
  size = (round(width * scale), round(height * scale))
  return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)


def _jpeg(pixels: np.ndarray) -> bytes:
  return cv2.imencode(".jpg", pixels, _QUALITY)[1].tobytes()


_LOOPS = {"naive loop": naive, "bare loop": bare}


def _loop(name: str, files: list[Path], image_px: int) -> float:
  """Returns the seconds of CPU that a plain loop over the images takes."""
  began = time.process_time()
  for file in files:
    _LOOPS[name](file.read_bytes(), image_px)
  return time.process_time() - began


def time_loop(name: str, files: list[Path], image_px: int, workers: int) -> tuple[float, float]:
  """Times a plain loop, shared out among processes that have started: seconds, and of CPU."""
  if workers == 1:
    _loop(name, files[:1], image_px)
    began = time.perf_counter()
    cpu = _loop(name, files, image_px)
    return time.perf_counter() - began, cpu
  context = multiprocessing.get_context("spawn")
  with concurrent.futures.ProcessPoolExecutor(
    workers, mp_context=context, initializer=cv2.setNumThreads, initargs=(1,)
  ) as pool:

    def share(images):
      parts = [images[i::workers] for i in range(workers)]
      return sum(pool.map(_loop, [name] * workers, parts, [image_px] * workers))

    share(files[: 4 * workers])  # starts and warms the processes
    began = time.perf_counter()
    cpu = share(files)
    return time.perf_counter() - began, cpu


def time_convert(
  raw: Path, image_px: int, workers: int, images: int | None = None
) -> tuple[float, float]:
  """Times a whole conversion, its processes' start included: seconds, and seconds of CPU."""
  before = _cpu()
  shard_size = 1 if images else 16
  options = {"image_px": image_px, "limit": images, "shard_size": shard_size, "workers": workers}
  with tempfile.TemporaryDirectory(dir=raw.parent) as scratch:
    out = Path(scratch) / "records"
    summary = convert.convert("folder", out, source=str(raw), progress=False, **options)
  return summary["seconds"], _cpu() - before


def _cpu() -> float:
  """Returns the seconds of CPU of this process and of those that have ended."""
  used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
  return sum(usage.ru_utime + usage.ru_stime for usage in used)


def measure(raw: Path, *, image_px: int, repeats: int, workers: list[int]) -> list[dict]:
  """Returns one row a contender and worker count: median and best images a second, CPU, start.

  The start of `convert` is the time of one image a worker; its other values are without it. On a
  host that is shared, CPU time tells more than images a second.
  """
  with open(raw / folder.MANIFEST, encoding="utf-8") as file:
    files = [raw / row["image"] for row in csv.DictReader(file)]
  rows = []
  for count in workers:
    rates: dict[str, list[float]] = {name: [] for name in (*_LOOPS, "convert")}
    cpu: dict[str, list[float]] = {name: [] for name in rates}
    starts = []
    for _ in range(repeats):
      for name in _LOOPS:
        seconds, used = time_loop(name, files, image_px, count)
        rates[name].append(len(files) / seconds)
        cpu[name].append(used / len(files))
      start, start_used = time_convert(raw, image_px, count, images=count)
      seconds, used = time_convert(raw, image_px, count)
      rates["convert"].append((len(files) - count) / (seconds - start))
      cpu["convert"].append((used - start_used) / (len(files) - count))
      starts.append(start)
    median = {name: statistics.median(values) for name, values in rates.items()}
    rows += [
      {
        "row": name,
        "workers": count,
        "images_per_s": median[name],
        "best": max(values),
        "cpu_ms": 1000 * statistics.median(cpu[name]),
        "least_cpu_ms": 1000 * min(cpu[name]),
        "of_bare": median[name] / median["bare loop"],
        "of_naive": median[name] / median["naive loop"],
        "start_s": statistics.median(starts) if name == "convert" else None,
      }
      for name, values in rates.items()
    ]
  return rows


def fidelity(raw: Path, image_px: int) -> list[dict]:
  """Measures how a reduced decoding changes the image to store: mean over the images, PSNR in dB.

  Against all pixels decoded and their areas averaged; beside it, the change by storing as JPEG.
  """
  ratios: dict[str, list[float]] = {}
  for file in raw.glob("*.jpg"):
    encoded = file.read_bytes()
    whole = _decoded_at(encoded, 1)
    wanted = _reduced(whole, image_px)
    for scale in (2, 4, 8):
      if min(whole.shape) >= scale * image_px:
        got = _reduced(_decoded_at(encoded, scale), image_px)
        ratios.setdefault(f"decoded at 1/{scale}", []).append(cv2.PSNR(got, wanted))
    ratios.setdefault("stored as JPEG", []).append(cv2.PSNR(images.decode(_jpeg(wanted)), wanted))
  return [{"row": name, "psnr_db": statistics.mean(ratios[name])} for name in sorted(ratios)]


# Key of a row -> heading and format.
_COLUMNS = {
  "workers": ("workers", "d"),
  "row": ("", ""),
  "images_per_s": ("images/s", ".0f"),
  "best": ("best", ".0f"),
  "of_bare": ("of bare", ".2f"),
  "of_naive": ("of naive", ".2f"),
  "cpu_ms": ("CPU, ms an image", ".1f"),
  "least_cpu_ms": ("least", ".1f"),
  "start_s": ("start, s", ".2f"),
}
_FIDELITY = {"row": ("", ""), "psnr_db": ("PSNR, dB", ".1f")}


def _table(columns: dict[str, tuple[str, str]], rows: list[dict]) -> str:
  cells = [[row[key] for key in columns] for row in rows]
  heads, formats = zip(*columns.values(), strict=True)
  return tabulate(cells, heads, tablefmt="github", floatfmt=formats)


def main() -> None:
  """Prints the table, and writes the JSON."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--images", type=int, default=24, help="different images drawn")
  parser.add_argument(
    "--rows", type=int, default=480, help="rows of the manifest, over those images"
  )
  parser.add_argument("--image_px", type=int, default=512)
  parser.add_argument("--repeats", type=int, default=3)
  parser.add_argument("--workers", type=int, nargs="*", default=sorted({1, os.cpu_count() or 1}))
  parser.add_argument("--json", help="file to write all values to")
  options = parser.parse_args()
  cv2.setNumThreads(1)
  with tempfile.TemporaryDirectory() as scratch:
    raw = Path(scratch) / "raw"
    size = draw(raw, options.images, options.rows)
    rows = measure(raw, image_px=options.image_px, repeats=options.repeats, workers=options.workers)
    changes = fidelity(raw, options.image_px)
  width, height = _SIZE
  images = f"{width} x {height} JPEG of {size / 1e6:.2f} MB to {options.image_px} px"
  print(f"{options.rows} images, {images}\n")
  print(_table(_COLUMNS, rows))
  print("\n" + _table(_FIDELITY, changes))
  if options.json:
    content = {"images": images, "rows": rows, "fidelity": changes}
    Path(options.json).write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
  main()
