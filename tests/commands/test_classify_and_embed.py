import json

import numpy as np
import pytest

from plan_jax.commands import classify, embed


def test_classify(run, images, capsys):
  classes = "--class=effusion", "--class=edema"
  classify.main([f"--workdir={run}", f"--image={images}/0.png", *classes])
  text = capsys.readouterr().out
  with pytest.raises(SystemExit, match="1 of 4 could not be read"):
    classify.main([f"--workdir={run}", f"--image={images}", *classes, "--json"])
  # Where tests run, the log goes to stdout too.
  printed = capsys.readouterr().out.splitlines()
  lines = [json.loads(line) for line in printed if line.startswith("{")]
  assert [sorted(line.get("scores", {})) for line in lines] == [["edema", "effusion"]] * 3 + [[]]
  assert f"effusion {lines[0]['scores']['effusion']:.3f}" in text and "error" in lines[3]


def test_embed_images_and_texts(run, images, tmp_path, capsys):
  out = tmp_path / "images.npz"
  with pytest.raises(SystemExit, match="1 of 4 could not be read"):
    embed.main([f"--workdir={run}", f"--images={images}", f"--out={out}"])
  assert capsys.readouterr().out.endswith(f"3 embeddings of 8 numbers: {out}\n")
  written = np.load(out)
  assert [name.rpartition("/")[2] for name in written["names"]] == ["0.png", "1.png", "2.png"]
  np.testing.assert_allclose(np.linalg.norm(written["embeddings"], axis=1), 1, rtol=1e-3)
  (tmp_path / "texts.txt").write_text("There is edema.\n\nNo effusion.\n")
  (tmp_path / "texts.csv").write_text("text\nThere is edema.\nNo effusion.\n")
  for name, names in (("texts.txt", ["line 1", "line 3"]), ("texts.csv", ["row 2", "row 3"])):
    embed.main([f"--workdir={run}", f"--texts={tmp_path / name}", f"--out={tmp_path}/{name}.npz"])
    assert np.load(f"{tmp_path}/{name}.npz")["names"].tolist() == names


def test_texts_beyond_the_limits_are_counted(run, images, tmp_path, caplog):
  long, out = "effusion " * 400, tmp_path / "texts.npz"
  (tmp_path / "texts.txt").write_text(f"There is edema.\n{long}\n")
  embed.main([f"--workdir={run}", f"--texts={tmp_path}/texts.txt", f"--out={out}"])
  assert "1 sentences found no room" in caplog.text
  caplog.clear()
  prompts = tmp_path / "prompts.json"
  prompts.write_text(json.dumps({"source": "a test", "findings": {"edema": {"positive": [long]}}}))
  given = f"--workdir={run}", f"--image={images}/0.png", "--class=edema"
  classify.main([*given, f"--prompts={prompts}"])
  assert "1 sentences found no room" in caplog.text
  caplog.clear()
  classify.main([*given])
  assert "found no room" not in caplog.text


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--images=x.png", "--out=x.csv"], "name a .npz file"),
    (["--images=x.png", "--out=/dev/null/x.npz"], "--out=/dev/null/x.npz cannot be written"),
    (["--texts=none.txt", "--out=x.npz"], "none.txt cannot be read"),
    (["--texts=none.csv", "--out=x.npz"], "none.csv"),
    (["--images=", "--out=x.npz"], "the images have an empty name"),
    (["--texts=", "--out=x.npz"], "--texts= cannot be read"),
  ],
)
def test_errors_of_embed_are_one_line(run, arguments, message):
  with pytest.raises(SystemExit) as caught:
    embed.main([f"--workdir={run}", *arguments])
  assert str(caught.value).startswith("error: ") and message in str(caught.value)


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--image=IMAGES/0.png", "--class=zxqv"], "the class 'zxqv' has no word that the model knows"),
    (["--image=IMAGES/0.png", "--class="], "--class[0] has no word"),
    (["--image=IMAGES/0.png", "--class=edema", "--prompts=none"], "there is no set 'none'"),
    (["--image=IMAGES/broken.png", "--class=edema"], "broken.png"),
  ],
)
def test_errors_of_classify_are_one_line(run, images, capsys, arguments, message):
  with pytest.raises(SystemExit) as caught:
    classify.main([f"--workdir={run}", *(a.replace("IMAGES", str(images)) for a in arguments)])
  error = str(caught.value)
  assert error.startswith("error: ") and message in error and "\n" not in error
  assert not capsys.readouterr().out
