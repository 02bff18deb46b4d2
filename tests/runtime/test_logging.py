import json
import math

from plan_jax.runtime import logging as reporting


def test_scalars_cut_what_will_happen_again(tmp_path):
  with reporting.Scalars(tmp_path, from_step=0) as scalars:
    for step in (1, 2, 3):
      scalars.write(step, {"train/loss": step, "bad": math.nan})
  with (tmp_path / "metrics.jsonl").open("a") as file:
    file.write('{"step": 4, "train/lo')  # a line that a kill cut short
  with reporting.Scalars(tmp_path, from_step=2) as scalars:
    scalars.write(3, {"train/loss": 30})
  with reporting.Scalars(tmp_path, from_step=0, mute=True) as other:
    other.write(9, {"train/loss": 9})  # another process: it touches nothing
  rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
  assert [row["step"] for row in rows] == [1, 2, 3] and rows[0]["bad"] is None
  assert reporting.curves(tmp_path / "metrics.jsonl") == {
    "train/loss": [(1, 1.0), (2, 2.0), (3, 30.0)]
  }
  assert list((tmp_path / "tensorboard").iterdir())


def test_messages_cannot_move_the_cursor(capsys):
  reporting.configure()
  reporting.log.info("one\ntwo \x1b[1A\rthree \udcff")
  assert capsys.readouterr().out == "one\ntwo \\x1b[1A\\rthree \\udcff\n"


def test_progress_has_rate_and_eta(monkeypatch):
  clock = iter([0.0, 10.0, 30.0])
  monkeypatch.setattr(reporting.time, "monotonic", lambda: next(clock))
  progress = reporting.Progress(100, start=0, per_step=8)
  assert "20/100 (20%)  2.00 steps/s, 16 images/s  ETA 0:40" in progress.line(20)
  assert "1.00 steps/s" in progress.line(40)


def test_duration():
  assert reporting.duration(59.6) == "1:00" and reporting.duration(3723) == "1:02:03"
