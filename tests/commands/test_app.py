"""The command plan-jax app, on a run that has learned nothing."""

import logging
import re
import socket
import sys

import pytest
import uvicorn
from starlette.testclient import TestClient

import plan_jax
from fakes.images import noise, png
from input_pipeline import images, records
from plan_jax.app.images import samples
from plan_jax.commands import app


@pytest.fixture(scope="module")
def whole(run, tmp_path_factory):
  """The run beside whose files its records lie."""
  folder = tmp_path_factory.mktemp("whole") / "a"
  folder.mkdir()
  for path in (*run.iterdir(), run.parent / "records"):
    (folder / path.name).symlink_to(path)
  return folder


@pytest.fixture
def served(monkeypatch):
  """The applications that were to be served."""
  applications = []

  def serve(server, sockets):
    applications.append(server.config.app)

  monkeypatch.setattr(uvicorn.Server, "run", serve)
  return applications


def messages(caplog):
  return [record.getMessage() for record in caplog.records]


@pytest.fixture
def heard(caplog, monkeypatch):
  """What is logged."""
  monkeypatch.setattr(logging.getLogger("plan_jax"), "propagate", True)
  return caplog


def test_the_app_says_what_the_model_does(whole, served, heard):
  app.main([f"--workdir={whole}", "--port=0"])
  lines = messages(heard)
  assert re.fullmatch(r"ready: http://127\.0\.0\.1:\d+  \(Ctrl-C ends it\)", lines[-1])
  assert not [line for line in lines if "no password" in line]
  client = TestClient(served[0], base_url="http://127.0.0.1")
  about = client.get("/about").json()
  assert about["models"] == ["a"] and len(about["samples"]) == 8
  image = noise(90, 70)
  name = client.post("/images", content=png(image)).json()["image"]
  question = {"image": name, "model": "a", "text": "small left effusion"}
  answer = client.post("/phrase", json=question | {"threshold": 0.5}).json()
  grounding = plan_jax.load(whole).ground(image, question["text"])
  assert answer["score"] == pytest.approx(grounding.score, rel=1e-5)
  assert answer["boxes"] == [pytest.approx(list(box), rel=1e-3) for box in grounding.boxes(0.5)]
  report = client.post("/report", json=question | {"text": "Heart is normal. Heart is normal."})
  assert [word["text"] for word in report.json()["words"]] == ["Heart", "is", "normal"]
  assert report.json()["warning"].startswith("3 words are left out")


def test_two_models_and_another_host(whole, served, heard, tmp_path):
  other = tmp_path / "a"
  other.mkdir()
  for path in whole.iterdir():
    (other / path.name).symlink_to(path)
  app.main([f"--workdir={whole}", f"--workdir={other}", "--host=0.0.0.0", "--port=0"])
  assert "no password and no encryption" in messages(heard)[-2]
  client = TestClient(served[0], base_url="http://192.0.2.7")
  assert client.get("/about").json()["models"] == [str(whole), str(other)]


def test_samples_are_test_images(run, whole):
  source = records.RecordSource(run.parent / "records", "test")
  shown = samples(whole)
  assert len(shown) == 8
  for place in (0, 7):
    assert (shown[place] == images.decode(source[place].image)).all()


def test_a_run_without_records_has_no_samples(run, heard):
  assert samples(run) == []
  assert "no test images to choose from" in messages(heard)[-1]


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--workdir=nowhere", "--port=0"], "nowhere holds no run"),
    (["--workdir=nowhere", "--host=192.0.2.7"], "error: --host=192.0.2.7 --port=8765: "),
    (["--workdir=nowhere", "--port=70000"], "error: --port=70000 is no port"),
    (["--workdir=a", "--workdir=./a"], "error: --workdir: give one folder, or two that differ"),
    (["--workdir=a", "--workdir=b", "--workdir=c"], "error: --workdir: give one folder, or two"),
  ],
)
def test_mistakes_are_one_line(arguments, message):
  with pytest.raises(SystemExit, match=re.escape(message)) as caught:
    app.main(arguments)
  assert "\n" not in str(caught.value)


def test_a_port_in_use_is_named():
  with socket.create_server(("127.0.0.1", 0)) as other:
    port = other.getsockname()[1]
    with pytest.raises(SystemExit, match=f"--port={port}: .*in use.*; name another --port"):
      app.main(["--workdir=nowhere", f"--port={port}"])


def test_the_extra_is_named(monkeypatch):
  monkeypatch.setitem(sys.modules, "uvicorn", None)
  with pytest.raises(SystemExit, match=r"uvicorn is not installed: pip install 'plan_jax\[app\]'"):
    app.main(["--workdir=nowhere"])
