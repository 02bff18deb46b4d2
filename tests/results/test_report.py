"""The report page: its content, that it needs nothing else, and that it works in a browser."""

import html
import json
import math
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest
from markupsafe import escape

from plan_jax.results import drawing, plots, report
from plan_jax.results.report import ImageView, Phrase, Word
from plan_jax.results.rows import Row

PROTOCOLS = {"grounding-v1": "The <rules> of grounding."}
EVIL = "</script><img src=x onerror=\"document.title='owned'\">&'"


def _rows():
  grounding = ("grounding", "grounding-v1", "toy/test")
  rows = []
  for group, run in (("macro", 0.3), ("nodule", 0.1), (f"evil {EVIL}", 0.2)):
    for metric in ("signed CNR", "mIoU"):
      rows.append(Row(*grounding, group, metric, "run", run, run - 0.02, run + 0.02, 80))
      rows.append(Row(*grounding, group, metric, "random", 0.01, 0.0, 0.02, 80))
      rows.append(Row(*grounding, group, metric, "mean_box", 0.21, 0.2, 0.22, 80))
  retrieval = ("retrieval", "retrieval-v1", "toy/test", "all", "median rank text-to-image")
  rows.append(Row(*retrieval, "run", 9.0, 7.0, 12.0, 50, 50))
  rows.append(Row(*retrieval, "chance", 25.5, math.nan, math.nan, 50, 50))
  return rows


def _image(name="image", height=40, width=60):
  rng = np.random.default_rng(len(name))
  mask = np.zeros((height, width), np.uint8)
  mask[5:20, 30:50] = 1
  left, right = np.zeros((2, 8, 12), np.float32)
  left[:, :3], right[:, -3:] = 0.01, 0.01  # soft regions sum to one: their values are small
  return ImageView(
    image=rng.integers(0, 255, (height, width), np.uint8),
    image_id=name,
    sentences=[
      [Word("left", 0.9, left), Word("of", 0.02, None), Word("right", 0.5, right)],
      [Word(EVIL, 1.0, np.array([[2.0], [0.0]], np.float32))],
    ],
    phrases=[
      ("small nodule", "nodule", mask, cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 3)),
      Phrase(EVIL, "edema", None, np.full((height, width), 0.3, np.float32)),
    ],
  )


def _write(folder, **changes):
  steps = range(0, 1000, 5)
  arguments = {
    "head": report.Head(
      f"toy <run> {EVIL}", f"A toy {EVIL}.", {"data": "toy/test", f"config {EVIL}": EVIL}
    ),
    "rows": _rows(),
    "patients": {("toy/test", "grounding"): {"macro": 60, "nodule": 20}},
    "curves": {
      "train/loss": [(s, 2 * math.exp(-s / 300) + 0.1 * math.sin(s)) for s in steps],
      "train/rate": [(s, 1e-5) for s in steps],
      f"val {EVIL}": [(0, 0.1), (500, math.nan), (900, 0.3)],
      "broken": [(0, math.nan)],
      "one": [(7, -3.0)],
    },
    "images": [_image(), _image("tall image", 60, 40), ImageView(np.zeros((9, 9), np.uint8), EVIL)],
    "protocols": PROTOCOLS,
  }
  return report.write_report(folder / "report" / "index.html", **(arguments | changes))


def test_page_needs_nothing_else_and_escapes_all_text(tmp_path):
  path = _write(tmp_path)
  page = path.read_text(encoding="utf-8")
  assert list(path.parent.iterdir()) == [path]
  assert not re.search(r'(src|href)=(?!"data:|"#term-|x )|url\(|@import|https?://', page)
  assert 'onerror="document' not in page and "<!--" not in page
  assert str(escape(EVIL)) in page
  assert page.count("<script") == page.count("</script>") == 2
  for text in (
    "grounding-v1",
    "retrieval-v1",
    "0.300 <span>[0.280, 0.320]",
    "By group: signed CNR",
  ):
    assert text in page
  assert str(escape(PROTOCOLS["grounding-v1"])) in page


class _Tags(HTMLParser):
  """Lists tags with the names of their attributes, and the values that a browser acts on."""

  def __init__(self, page: str):
    super().__init__()
    self.tags, self.active = [], []
    self.feed(page)

  def handle_starttag(self, tag, attrs):
    self.tags.append((tag, [name for name, _ in attrs]))
    self.active += [value for name, value in attrs if name in ("src", "href", "style", "d")]


@pytest.mark.parametrize(
  "text",
  [
    "'\"><script>alert(1)</script>",
    '" onmouseover="alert(1)',
    "' onmouseover='alert(1)",
    "javascript:alert(1)",
    "</title></style><svg onload=alert(1)>",
    "{{ 7 * 7 }} {% raw %} &lt;b&gt; \u2028 ]]> --> <!--",
    "\x1b\0\x85",
  ],
)
def test_names_change_no_tag_of_the_page(tmp_path, monkeypatch, text):
  pages = []
  for name in ("plain", text):
    monkeypatch.setattr(sys.modules[__name__], "EVIL", name)
    pages.append(_Tags(_write(tmp_path / str(len(pages))).read_text(encoding="utf-8")))
  assert pages[0].tags == pages[1].tags
  assert pages[0].active == pages[1].active


def test_images_come_first_and_tables_last_folded_to_their_macro_rows(tmp_path):
  page = _write(tmp_path).read_text(encoding="utf-8")
  order = ["<h1>", "A toy", "<li>", '<dl class="notes">', "<h2>Images", "<h2>Curves"]
  order += ["<h2>All metrics", "<h2>Glossary"]
  places = [page.index(text) for text in order]
  assert places == sorted(places)
  assert "<details open" not in page
  groups = re.sub(r"<details>.*?</details>", "", page, flags=re.DOTALL)
  assert ">nodule<" in page and not re.search(r'<th scope="row">nodule', groups)
  assert '<meta name="viewport"' in page and "@media print" in page


def test_words_are_linked_once_to_a_glossary_of_their_own(tmp_path):
  page = _write(tmp_path).read_text(encoding="utf-8")
  links = re.findall(r'href="#(term-[\w-]+)"', page)
  anchors = re.findall(r'<dt id="(term-[\w-]+)"', page)
  assert len(links) == len(set(links)) and sorted(links) == sorted(anchors)
  for name in ("soft-region", "macro", "miou", "signed-cnr", "chance-baseline", "mean-box"):
    assert f"term-{name}" in anchors


@pytest.mark.parametrize(("count", "judged"), [(20, True), (19, False)])
def test_few_patients_give_no_verdict(tmp_path, count, judged):
  patients = {("toy/test", "grounding"): {"macro": count}, ("toy/test", "x"): {"macro": 9}}
  page = _write(tmp_path, patients=patients).read_text(encoding="utf-8")
  tables = page[page.index("<h2>All metrics") :]
  assert ('class="run better"' in tables) == ('class="run worse"' in tables) == judged
  assert ("not judged: only 19 patients</td>" in tables) != judged
  (sentence,) = re.findall("<li>(.*mIoU.*)</li>", page)
  assert ('class="better"' in sentence) == judged and "0.210" in sentence
  assert ("only 19 patients" in sentence) != judged and "80 phrases of toy/test" in sentence


def test_a_run_below_a_chance_baseline_is_shown_so(tmp_path):
  page = _write(tmp_path).read_text(encoding="utf-8")
  rows = page.replace("\n", "").split("<tr>")
  lines = {re.sub("<[^>]*>", "", row.split("</th>")[0]): row for row in rows}
  assert 'class="run better"' in lines["mIoU"]  # the macro table
  assert 'class="run worse"' in lines["nodule"]
  assert '<td class="best">0.210' in lines["nodule"]
  assert 'class="run level"' in lines[str(escape(f"evil {EVIL}"))]
  rank = lines["median rank text-to-image"]
  assert 'class="run better"' in rank and "<td>50</td><td>50</td>" in rank


def test_an_empty_report_is_still_a_page(tmp_path):
  nothing = {"head": report.Head("", "", {}), "rows": [], "curves": {}, "images": []}
  page = _write(tmp_path, **nothing).read_text(encoding="utf-8")
  assert "<h1>" in page and "<h2>" not in page


def test_curves_say_what_they_leave_out(tmp_path):
  page = _write(tmp_path).read_text(encoding="utf-8")
  assert "0.3 at 900, 1 not finite" in page and "no finite value, 1 not finite" in page
  assert not re.search(r'(points|x|y|x1|x2|y1|y2|cx|cy|d)="[^"]*(nan|inf)', page)


def test_smoothing_keeps_lines_and_removes_noise():
  line = np.linspace(3, 5, 400)
  assert plots._smooth(np.full(100, 7.0)) == pytest.approx(np.full(100, 7.0))
  assert plots._smooth(line)[50:-50] == pytest.approx(line[50:-50])
  noise = np.random.default_rng(0).normal(size=400)
  assert plots._smooth(noise).std() < 0.35
  x, y = plots._thinned(np.arange(5000.0), np.eye(1, 5000, 1234)[0])
  assert len(x) <= 600 and y.max() == 1 and (x[0], x[-1]) == (0, 4999) and (np.diff(x) > 0).all()


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3.3, 17), (1e-7, 3e-5), (5, 5), (0, 0)])
def test_ticks_are_few_and_reach_around(low, high):
  ticks = plots._ticks(low, high, 4)
  assert 2 <= len(ticks) <= 8 and ticks[0] <= low and ticks[-1] >= high


def test_outline_follows_the_true_edge():
  mask = np.zeros((30, 50), bool)
  mask[10:20, 5:45] = True
  mask[13:16, 20:30] = False
  numbers = re.findall(r"-?[\d.]+", drawing.outline(mask))
  points = np.array(numbers, float).reshape(-1, 2)
  assert points.min(0) == pytest.approx([5, 10], abs=0.3)
  assert points.max(0) == pytest.approx([45, 20], abs=0.3)
  assert drawing.outline(mask).count("M") == 2  # the border and the hole
  assert drawing.outline(np.zeros((5, 5), bool)) == ""


def test_bad_images_are_named():
  with pytest.raises(ValueError, match="image7"):
    ImageView(np.zeros((4, 4), np.float32), "image7")
  with pytest.raises(ValueError, match="image8.*mask of 'p'"):
    ImageView(
      np.zeros((4, 4), np.uint8), "image8", (), [("p", "l", np.zeros((3, 3)), np.ones((2, 2)))]
    )


def test_overlays_show_image_truth_and_map(tmp_path):
  path = report.save_overlays(tmp_path / "deep" / "sheet.png", [_image(), _image("b"), _image("c")])
  sheet = cv2.imread(str(path)).astype(int)
  assert (
    sheet.shape[2] == 3 and 2.5 < sheet.shape[1] / sheet.shape[0] < 4
  )  # two images a row, two rows
  image, truth, mixed = (sheet[6:230, 6 + 228 * i : 230 + 228 * i] for i in range(3))

  def colourful(tile):
    return ((tile.max(2) - tile.min(2)) > 60).mean()

  assert colourful(image) == 0 and 0 < colourful(truth) < colourful(mixed)
  assert report.save_overlays(tmp_path / "one.png", [_image()]).stat().st_size > 1000
  without = [ImageView(np.zeros((9, 9), np.uint8), "x")]
  assert report.save_overlays(tmp_path / "none.png", without) is None
  assert not (tmp_path / "none.png").exists()


_HOOK = """<script>
window.problems = [];
addEventListener("error", e => problems.push(String(e.message)));
addEventListener("unhandledrejection", e => problems.push(String(e.reason)));
addEventListener("securitypolicyviolation", e => problems.push(e.violatedDirective));
</script>"""
# Plays a reader on the first two images, and writes down what the map of the image shows.
_READER = """<script>
const views = [...document.querySelectorAll("article.image")].slice(0, 2).map(image => {
  const canvas = image.querySelector("canvas");
  const shares = () => {  // how strongly the map covers the left and the right third, 0 to 1
    const third = Math.floor(canvas.width / 3);
    return [0, canvas.width - third].map(x => {
      const data = canvas.getContext("2d").getImageData(x, 0, third, canvas.height).data;
      let sum = 0;
      for (let i = 3; i < data.length; i += 4) sum += data[i];
      return sum / data.length * 4 / 255;
    });
  };
  const caption = () => image.querySelector(".shown").textContent;
  const chosen = () => image.querySelectorAll(".viewer path.chosen").length;
  const state = () => ({ shares: shares(), caption: caption(), chosen: chosen() });
  const fire = (element, name) => element.dispatchEvent(new MouseEvent(name, { bubbles: true }));
  const [left, of, right, ramp] = image.querySelectorAll(".word");
  const out = { start: state() };
  fire(left, "mouseover"); out.left = state(); fire(left, "mouseout"); out.after = state();
  fire(of, "mouseover"); out.none = state();
  right.dispatchEvent(new FocusEvent("focusin", { bubbles: true })); out.right = state();
  right.dispatchEvent(new FocusEvent("focusout", { bubbles: true }));
  ramp.focus();
  const at = share => canvas.getContext("2d").getImageData(
    canvas.width / 2, Math.floor(share * canvas.height), 1, 1).data[3] / 255;
  out.ramp = [0.1, 0.625, 0.9].map(at);
  ramp.blur();
  const button = image.querySelectorAll(".phrases button")[1];
  button.click(); out.second = state();
  out.pressed = [...image.querySelectorAll("button")].map(b => b.getAttribute("aria-pressed"));
  const slider = document.getElementById("opacity");
  slider.value = 0; slider.dispatchEvent(new Event("input")); out.clear = state();
  slider.value = 0.7; slider.dispatchEvent(new Event("input"));
  out.shades = [left, of].map(w => getComputedStyle(w).backgroundColor);
  out.drawn = image.querySelector("img").naturalWidth;
  return out;
});
document.title = JSON.stringify({ problems, views, width: document.documentElement.scrollWidth });
</script>"""


@pytest.mark.skipif(not shutil.which("chromium"), reason="needs the browser chromium")
@pytest.mark.parametrize("width_px", [1280, 500])  # the least that it has without a screen
def test_page_works_in_a_browser(tmp_path, width_px):
  page = _write(tmp_path).read_text(encoding="utf-8")
  page = page.replace("<head>", "<head>" + _HOOK, 1).replace("</body>", _READER + "</body>", 1)
  path = tmp_path / "read.html"
  path.write_text(page, encoding="utf-8")
  browser = [
    "chromium",
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--dump-dom",
    f"--user-data-dir={tmp_path / 'profile'}",
    f"--window-size={width_px},900",
    path.as_uri(),
  ]
  done = subprocess.run(browser, capture_output=True, text=True, timeout=60, check=True)
  title = html.unescape(re.search(r"<title>(.*?)</title>", done.stdout, re.DOTALL).group(1))
  result = json.loads(title)  # fails where a script of the page stopped ours, or evil text ran
  assert result["problems"] == []
  assert result["width"] <= width_px
  assert len(result["views"]) == 2
  for image, width in zip(result["views"], (60, 40), strict=True):
    assert image["drawn"] == width
    assert image["start"]["caption"] == "phrase: small nodule" and image["start"]["chosen"] == 1
    assert image["start"]["shares"][1] > 0.02
    left, right = image["left"]["shares"], image["right"]["shares"]
    assert left[0] > 0.3 > 0.05 > left[1] and right[1] > 0.3 > 0.05 > right[0]
    assert image["left"]["caption"] == "word: left, significance 0.90"
    assert image["after"] == image["none"] == image["start"]
    assert image["second"]["caption"] == f"phrase: {EVIL}" and image["second"]["chosen"] == 0
    assert image["second"]["shares"] == pytest.approx([0.7 * 2 * 0.3] * 2, abs=0.02)
    # Two rows, 1 and 0, interpolated: a quarter at 5/8 of the height is half opaque.
    assert image["ramp"] == pytest.approx([0.7, 0.35, 0], abs=0.05)
    assert image["pressed"] == ["false", "true"]
    assert image["clear"]["shares"] == [0, 0]
    strong, weak = (float(re.findall(r"[\d.]+", shade)[3]) for shade in image["shades"])
    assert strong == pytest.approx(0.54, abs=0.01) and weak == pytest.approx(0.012, abs=0.01)
