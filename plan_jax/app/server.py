"""The server of the app: one page, and the models behind it.

Nothing is written to disk, and no path comes from a request: an image is uploaded, or one of those
that were read at the start. The models run in one thread; requests wait for it in turn.
"""

import asyncio
import functools
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from input_pipeline.errors import UserError
from input_pipeline.readers.raw.stored_images import MAX_DECODED_PX
from plan_jax.app.answers import Answers
from plan_jax.app.guard import Guard, Hosts
from plan_jax.app.images import UnknownError

_FOLDER = Path(__file__).parent
_IMAGE_BYTES = 2 * MAX_DECODED_PX + 2**20  # 16 bits a pixel, and a header
_TEXT_BYTES = 2**16
_REPORT = {"image": str, "model": str, "text": str}
_PHRASE = _REPORT | {"threshold": float}


def application(answers: Answers, hosts: Hosts) -> Starlette:
  """Makes the ASGI application, which answers under the names of `hosts`."""
  thread = ThreadPoolExecutor(1, "models")

  async def compute(function: Callable, *args, **kwargs):
    call = functools.partial(function, *args, **kwargs)
    return await asyncio.get_running_loop().run_in_executor(thread, call)

  async def about(request: Request) -> Response:
    return JSONResponse(answers.about())

  async def upload(request: Request) -> Response:
    return JSONResponse(await compute(answers.upload, await _body(request, _IMAGE_BYTES)))

  async def image(request: Request) -> Response:
    data, (height, width) = await compute(answers.png, request.path_params["name"])
    size = {"X-Width": str(width), "X-Height": str(height)}
    return Response(data, media_type="image/png", headers=size)

  def question(method: Callable, kinds: dict[str, type]) -> Route:
    async def answer(request: Request) -> Response:
      fields = _fields(await _body(request, _TEXT_BYTES), kinds)
      return JSONResponse(await compute(method, **fields))

    return Route(f"/{method.__name__}", answer, methods=["POST"])

  return Starlette(
    routes=[
      *map(_file, ("page.html", "page.css", "page.js")),
      Route("/about", about),
      Route("/images", upload, methods=["POST"]),
      Route("/images/{name}", image),
      question(answers.phrase, _PHRASE),
      question(answers.boxes, _PHRASE),
      question(answers.report, _REPORT),
    ],
    middleware=[Middleware(Guard, hosts=hosts)],
    exception_handlers={
      HTTPException: lambda _, error: _refusal(error.detail, error.status_code),
      UnknownError: lambda _, error: _refusal(str(error), 404),
      UserError: lambda _, error: _refusal(str(error), 400),
      ClientDisconnect: lambda *_: Response(status_code=400),  # of a page that was left
      Exception: lambda *_: _refusal("the app failed on this; its log says why", 500),
    },
  )


def _file(name: str) -> Route:
  async def send(request: Request) -> Response:
    return FileResponse(_FOLDER / name)

  return Route("/" if name == "page.html" else f"/{name}", send)


async def _body(request: Request, most: int) -> bytes:
  """Reads the body of a request. Raises HTTPException as soon as it is longer than `most` bytes."""
  body = bytearray()
  async for chunk in request.stream():
    body += chunk
    if len(body) > most:
      raise HTTPException(413, f"more than {most} bytes")
  return bytes(body)


def _fields(body: bytes, kinds: dict[str, type]) -> dict:
  """Reads the fields of a question. Raises HTTPException for others than those of `kinds`."""
  try:
    fields = json.loads(body, parse_int=float)
  except (ValueError, RecursionError):  # of bytes that are no text too
    fields = None
  if not isinstance(fields, dict) or {key: type(x) for key, x in fields.items()} != kinds:
    names = ", ".join(f"{name} ({kind.__name__})" for name, kind in kinds.items())
    raise HTTPException(400, f"the body is no JSON object of {names}")
  return fields


def _refusal(message: str, status: int) -> Response:
  return JSONResponse({"error": message}, status)
