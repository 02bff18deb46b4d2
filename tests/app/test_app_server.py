"""The server of the app: what it answers, and what it refuses."""

import base64

import cv2
import numpy as np
import pytest
from starlette.testclient import TestClient

from fakes import dicom
from fakes.images import noise, png
from fakes.models import Squares
from input_pipeline import images as image_lib
from plan_jax.app import server
from plan_jax.app.answers import Answers
from plan_jax.app.guard import Hosts
from plan_jax.app.images import Images, UnknownError

BASE = "http://127.0.0.1:8765"
SAMPLE = noise(80, 64)


@pytest.fixture
def client():
  models = {"a": Squares(), "b": Squares(offset=20)}
  app = server.application(Answers(models, Images([SAMPLE])), Hosts("127.0.0.1"))
  return TestClient(app, base_url=BASE, raise_server_exceptions=False)


def ask(client, path="phrase", **more):
  body = {"image": "sample-1", "model": "a", "text": "left effusion"} | more
  if path != "report":
    body = {"threshold": 0.5} | body
  return client.post(f"/{path}", json=body)


def levels(encoded):
  array = np.frombuffer(base64.b64decode(encoded["levels"]), np.uint8)
  return array.reshape(encoded["height"], encoded["width"])


def upload(client, data):
  return client.post("/images", content=data)


def test_the_page_needs_nothing_else(client):
  for path, kind in (
    ("/", "text/html"),
    ("/page.css", "text/css"),
    ("/page.js", "text/javascript"),
  ):
    answer = client.get(path)
    assert answer.status_code == 200 and answer.headers["content-type"].startswith(kind)
    assert (
      "http://" not in answer.text.replace("http://www.w3.org", "")
      and "https://" not in answer.text
    )
    assert "innerHTML" not in answer.text and "style=" not in answer.text


def test_about(client):
  about = client.get("/about").json()
  assert about["models"] == ["a", "b"] and about["samples"] == ["sample-1"]
  assert len(base64.b64decode(about["colours"])) == 3 * 256


def test_a_phrase_has_map_score_and_boxes(client):
  answer = ask(client).json()
  assert (answer["score"], answer["quantile"], answer["warning"]) == (0.75, 0.5, "")
  shown = levels(answer["map"])
  assert shown.shape == SAMPLE.shape and set(np.unique(shown)) == {0, 254, 255}
  assert (shown[:, 0] == 255).all() and shown[15, 25] == 254  # cropped, and inside
  assert answer["boxes"] == [[20, 10, 40, 30, 1.0]]


def test_models_differ(client):
  boxes = [ask(client, model=name).json()["boxes"] for name in "ab"]
  assert boxes == [[[20, 10, 40, 30, 1.0]], [[40, 10, 60, 30, 1.0]]]


@pytest.mark.parametrize(("threshold", "right"), [(0.25, 50), (1, 20)])
def test_boxes_at_another_threshold(client, threshold, right):
  assert ask(client).status_code == 200
  answer = ask(client, "boxes", threshold=threshold).json()
  assert answer == {"boxes": [[20, 10, right, 30, 1.0]]}


def test_the_model_is_not_asked_twice_for_boxes():
  model = Squares()
  answers = Answers({"a": model}, Images([SAMPLE]))
  for threshold in (0.5, 0.6):
    answers.phrase("sample-1", "a", "one", threshold)
    answers.boxes("sample-1", "a", "one", threshold)
  assert model.calls == ["ground"]


def test_a_report_has_all_its_words(client):
  answer = ask(client, "report", text="Heart normal.\nLeft effusion. Too many").json()
  assert [word["text"] for word in answer["words"]] == ["Heart", "normal", "Left", "effusion"]
  assert answer["words"][0]["weight"] == 0.5
  assert all(levels(word["map"]).max() == 254 for word in answer["words"])
  assert answer["warning"].startswith("2 words are left out")


@pytest.mark.parametrize(
  "data",
  [
    png(SAMPLE),
    png(SAMPLE, ".jpg"),
    png(np.repeat(SAMPLE[..., None], 3, 2)),
    png(SAMPLE.astype(np.uint16) * 257),
    dicom.image(SAMPLE, photometric="MONOCHROME1", WindowCenter=128, WindowWidth=256),
  ],
  ids=["png", "jpeg", "colours", "16 bits", "dicom"],
)
def test_an_upload_is_an_image(client, data):
  uploaded = upload(client, data).json()
  name = uploaded["image"]
  assert uploaded["was_stretched"] == (data[24:25] == b"\x10")  # the bits of a PNG
  answer = client.get(f"/images/{name}")
  assert (answer.headers["x-width"], answer.headers["x-height"]) == ("80", "64")
  pixels = cv2.imdecode(np.frombuffer(answer.content, np.uint8), cv2.IMREAD_UNCHANGED)
  expected = 255 - SAMPLE if data[128:132] == b"DICM" else SAMPLE
  tolerance = 40 if data[:2] == b"\xff\xd8" else 1
  np.testing.assert_allclose(pixels.astype(int), expected.astype(int), atol=tolerance)
  assert ask(client, image=name).json()["score"] == 0.75


def test_a_large_image_is_reduced_for_the_page_alone(client):
  name = upload(client, png(np.tile(SAMPLE, (40, 1)))).json()["image"]
  answer = client.get(f"/images/{name}")
  assert answer.headers["x-height"] == "2560"
  assert image_lib.decode(answer.content).shape == (1024, 32)
  answer = ask(client, image=name).json()
  assert levels(answer["map"]).shape == (512, 16)
  assert answer["boxes"] == [[20, 10, 40, 30, 1.0]]


def test_the_oldest_uploads_go_first(monkeypatch):
  monkeypatch.setattr("plan_jax.app.images._HELD_PX", 2 * SAMPLE.size)
  held = Images([SAMPLE])
  names = [held.add(png(SAMPLE))[0] for _ in range(3)]
  assert held[names[2]].shape == held[names[1]].shape == held["sample-1"].shape
  with pytest.raises(UnknownError, match="drop it again"):
    held[names[0]]


@pytest.mark.parametrize(
  "data",
  [
    b"",
    b"no image",
    png(SAMPLE)[:-20],
    b"%!PS-Adobe-3.0 EPSF-3.0",
    b"\0" * 128 + b"DICM" + b"x" * 90,
  ],
  ids=["nothing", "text", "cut short", "postscript", "no dicom"],
)
def test_what_is_no_image_is_refused_in_one_line(client, data):
  answer = upload(client, data)
  assert answer.status_code == 400
  error = answer.json()["error"]
  assert error.startswith("the file: ") and "\n" not in error and "Traceback" not in error


def test_too_many_bytes_and_pixels_are_refused(client, monkeypatch):
  header = b"P5\n40000 40000\n255\n"
  answer = upload(client, header)
  assert answer.status_code == 400 and "max_decoded_px" in answer.json()["error"]
  monkeypatch.setattr(server, "_IMAGE_BYTES", 100)
  assert upload(client, b"x" * 101).status_code == 413
  assert ask(client, text="x" * 2**16).status_code == 413


@pytest.mark.parametrize(
  ("path", "more", "status", "message"),
  [
    ("phrase", {"text": " ... "}, 400, "has no word"),
    ("report", {"text": "..."}, 400, "has no word"),
    ("phrase", {"image": "sample-9"}, 404, "drop it again"),
    ("phrase", {"image": "../config.json"}, 404, "drop it again"),
    ("phrase", {"model": "c"}, 404, "no such model"),
    ("phrase", {"text": 3}, 400, "JSON object of image (str), model (str)"),
    ("phrase", {"file": "/etc/passwd"}, 400, "JSON object of image"),
    ("boxes", {"threshold": "0.5"}, 400, "threshold (float)"),
    ("boxes", {"threshold": 1.5}, 400, "threshold is 1.5"),
    ("boxes", {"threshold": 0}, 400, "threshold is 0"),
    ("report", {"threshold": 0.5}, 400, "text (str)"),
    ("phrase", {"text": "fail"}, 500, "its log says why"),
  ],
)
def test_a_wrong_question_is_refused_in_one_line(client, path, more, status, message):
  answer = ask(client, path, **more)
  assert answer.status_code == status and message in answer.json()["error"]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 60000])
def test_a_body_that_is_no_json_is_refused(client, body):
  answer = client.post("/phrase", content=body)
  assert answer.status_code == 400 and "JSON object" in answer.json()["error"]


@pytest.mark.parametrize(
  "path", ["/images/..%2f..%2fpyproject.toml", "/server.py", "/../pyproject.toml", "/x"]
)
def test_no_path_can_be_asked_for(client, path):
  answer = client.get(path)
  assert answer.status_code == 404 and list(answer.json()) == ["error"]


@pytest.mark.parametrize(
  "host", ["evil.example", "evil.example:8765", "127.0.0.1.evil.example", "", "["]
)
def test_other_names_are_refused(client, host):
  answer = client.get("/about", headers={"host": host})
  assert answer.status_code == 403 and "under this name" in answer.json()["error"]


@pytest.mark.parametrize("host", ["localhost:8765", "127.0.0.1", "[::1]:9", "LOCALHOST"])
def test_loopback_names_are_answered(client, host):
  assert client.get("/about", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
  "origin", ["http://evil.example", "null", "http://127.0.0.1:9", "https://127.0.0.1:8765"]
)
@pytest.mark.parametrize("path", ["images", "phrase", "boxes", "report"])
def test_posts_from_other_sites_are_refused(client, path, origin):
  answer = client.post(f"/{path}", content=png(SAMPLE), headers={"origin": origin})
  assert answer.status_code == 403 and "another site" in answer.json()["error"]


def test_the_own_page_may_post(client):
  answer = client.post("/images", content=png(SAMPLE), headers={"origin": BASE})
  assert answer.status_code == 200


@pytest.mark.parametrize("path", ["/", "/about", "/images/sample-1", "/x"])
def test_headers(client, path):
  headers = client.get(path).headers
  policy = headers["content-security-policy"]
  assert (
    "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
  )
  assert headers["x-content-type-options"] == "nosniff"
  assert headers["cross-origin-resource-policy"] == "same-origin"
  assert not [name for name in headers if name.startswith("access-control")]


@pytest.mark.parametrize(
  ("host", "name", "right"),
  [
    ("192.0.2.7", "192.0.2.7", True),
    ("192.0.2.7", "localhost", True),
    ("192.0.2.7", "evil.example", False),
    ("node7.example", "node7.example", True),
    ("0.0.0.0", "192.0.2.7", True),
    ("0.0.0.0", "evil.example", False),
    ("::", "2001:db8::7", True),
    ("127.0.0.1", "192.0.2.7", False),
    ("127.0.0.1", None, False),
    ("2001:db8:0:0::5", "2001:db8::5", True),
    ("2001:db8:0:0::5", "2001:db8::6", False),
    ("2001:db8:0:0::5", "evil.example", False),
  ],
)
def test_names_of_a_host(host, name, right):
  assert (name in Hosts(host)) is right


@pytest.mark.parametrize(
  ("host", "right"),
  [
    ("127.0.0.1", True),
    ("127.0.0.2", True),
    ("::1", True),
    ("localhost", True),
    ("0.0.0.0", False),
    ("192.0.2.7", False),
    ("node7", False),
  ],
)
def test_only_loopback_is_private(host, right):
  assert Hosts(host).is_loopback is right


def test_warming_up_calls_what_requests_will():
  model = Squares()
  Answers({"a": model}, Images()).warm_up()
  assert model.calls == ["ground"] + ["attend"] * 4
