"""Paths that tests share."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SHARED_DATA = ROOT.parent / "shared" / "data"  # real images and reports; tests skip where absent
REAL = SHARED_DATA / "cxr_mini"  # real images with a manifest
