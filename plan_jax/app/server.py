"""The server of the app: one page, and the models behind it.

Nothing is written to disk, and no path comes from a request: an image is uploaded, or one of those
that were read at the start. The models run in one thread; requests wait for it in turn.
"""

import asyncio
import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from input_pipeline.errors import UserError
from input_pipeline.example import UnreadableError
from input_pipeline.readers.raw.stored_images import MAX_DECODED_PX
from input_pipeline.terminal import escape
from plan_jax.app import answers
from plan_jax.app.guard import Guard, Hosts
from plan_jax.app.images import GoneError, Images
from plan_jax.inference.predictor import Predictor
from plan_jax.runtime.logging import log

_FOLDER = Path(__file__).parent
_IMAGE_BYTES = 2 * MAX_DECODED_PX + 2**20  # 16 bits a pixel, and a header
_TEXT_BYTES = 2**16
_FIELDS = ("image", "model", "text")
_ANSWERS = {"ground": answers.ground, "report": answers.report}


def warm_up(models: Mapping[str, Predictor]) -> None:
  """Compiles what requests will call, so that the first does not wait for it."""
  blank = np.zeros((64, 64), np.uint8)
  for model in models.values():
    for answer in _ANSWERS.values():
      answer(model, blank, "left effusion")


def application(models: Mapping[str, Predictor], images: Images, hosts: Hosts) -> Starlette:
  """Makes the ASGI application.

  Args:
    models: by the name that the page shows.
    images: that it holds.
    hosts: it answers under.
  """
  thread = ThreadPoolExecutor(1, "models")

  async def compute(function: Callable, *args):
    return await asyncio.get_running_loop().run_in_executor(thread, function, *args)

  async def about(request: Request) -> Response:
    return JSONResponse(
      {
        "models": list(models),
        "samples": images.samples,
        "thresholds": answers.THRESHOLDS,
        "colours": answers.colours(),
      }
    )

  async def upload(request: Request) -> Response:
    name = await compute(images.add, await _body(request, _IMAGE_BYTES))
    return JSONResponse({"image": name})

  async def image(request: Request) -> Response:
    pixels = images[request.path_params["name"]]
    size = {"X-Width": str(pixels.shape[1]), "X-Height": str(pixels.shape[0])}
    return Response(await compute(answers.png, pixels), media_type="image/png", headers=size)

  async def answer(request: Request) -> Response:
    fields = _fields(await _body(request, _TEXT_BYTES))
    if fields["model"] not in models:
      raise HTTPException(404, "there is no such model")
    function = _ANSWERS[request.url.path.strip("/")]
    model, pixels = models[fields["model"]], images[fields["image"]]
    return JSONResponse(await compute(function, model, pixels, fields["text"]))

  return Starlette(
    routes=[
      Route("/", _file("page.html")),
      Route("/page.css", _file("page.css")),
      Route("/page.js", _file("page.js")),
      Route("/about", about),
      Route("/images", upload, methods=["POST"]),
      Route("/images/{name}", image),
      *(Route(f"/{name}", answer, methods=["POST"]) for name in _ANSWERS),
    ],
    middleware=[Middleware(Guard, hosts=hosts)],
    exception_handlers={
      HTTPException: lambda _, error: _refusal(error.detail, error.status_code),
      GoneError: lambda _, error: _refusal(str(error), 404),
      UserError: lambda _, error: _refusal(str(error), 400),
      UnreadableError: lambda _, error: _refusal(str(error), 415),
      Exception: _failure,
    },
  )


def _file(name: str) -> Callable:
  async def send(request: Request) -> Response:
    return FileResponse(_FOLDER / name)

  return send


async def _body(request: Request, most: int) -> bytes:
  """Reads the body of a request. Raises HTTPException as soon as it is longer than `most` bytes."""
  body = bytearray()
  async for chunk in request.stream():
    body += chunk
    if len(body) > most:
      raise HTTPException(413, f"more than {most} bytes")
  return bytes(body)


def _fields(body: bytes) -> dict[str, str]:
  try:
    fields = json.loads(body)
  except ValueError:  # also of bytes that are no text
    fields = None
  wrong = not isinstance(fields, dict) or set(fields) != set(_FIELDS)
  if wrong or not all(isinstance(value, str) for value in fields.values()):
    raise HTTPException(400, f"the body is no JSON object of the strings {', '.join(_FIELDS)}")
  return fields


def _refusal(message: str, status: int) -> Response:
  return JSONResponse({"error": escape(message)}, status)


def _failure(request: Request, error: Exception) -> Response:
  log.error(f"{request.url.path}: {type(error).__name__}: {error}")
  return _refusal("the app failed on this; its log says why", 500)
