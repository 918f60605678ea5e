"""The routes besides filling: health, metrics, the OpenAPI document, and the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import resources
from typing import Any

import orjson
from fastapi import FastAPI, Request
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.responses import Response as HttpResponse

import fitb
from fitb.serve import schema
from fitb.serve.endpoint import PATH
from fitb.serve.filler import Filler
from fitb.serve.limits import Token
from fitb.serve.metrics import Metrics
from fitb.serve.refusal import Refusal

_PAGE = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/show.js": ("show.js", "text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
_PAGE_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self';"
        " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}
_REFERENCE = "#/components/schemas/{model}"
_DESCRIPTION = """
Fill in the blanks of texts. A blank is written `[MASK]` (one piece of the vocabulary), `___` (one
word) or `[SPAN]` (any pieces). Offsets count Unicode code points. Every answer other than 200 says
why in `error`; 503 and 504 are worth another try.
"""
_REASONS = {
    400: "The body is not JSON in UTF-8.",
    401: "The token is missing or wrong.",
    408: "The body came too slowly.",
    413: "The body is too large.",
    415: "The body is not of type application/json.",
    421: "The Host header is no name of this server.",
    422: "It breaks a limit, or cannot be filled.",
    500: "The server failed.",
    503: "No model yet, or too many texts wait; Retry-After says when to try again.",
    504: "Not filled before the deadline.",
}


@dataclass
class State:
    """What of a server changes while it runs.

    Args:
        fillers: by name of the model, once it is loaded.
        stopping: no longer ready.
    """

    fillers: dict[str, Filler] = field(default_factory=dict)
    stopping: bool = False


def make_app(
    token: Token | None,
    metrics: Metrics,
    state: State,
    names: Sequence[str],
    model: type[BaseModel],
) -> FastAPI:
    """Return the application.

    Args:
        names: of the models that will be loaded.
        model: of the body of a request to fill.
    """
    app = FastAPI(title="fitb", openapi_url="/openapi.json", docs_url=None, redoc_url=None)
    app.add_exception_handler(HTTPException, _http_exception)
    app.add_exception_handler(Refusal, _refused)
    _add_health(app, token, metrics, state, names)
    for path, (name, kind) in _PAGE.items():
        content = (resources.files("fitb.serve") / "page" / name).read_bytes()
        page = partial(HttpResponse, content, media_type=kind, headers=_PAGE_HEADERS)
        app.add_route(path, _constant(page), include_in_schema=False)
    app.openapi = lambda: _openapi(app, model)  # type: ignore[method-assign]
    return app


def _add_health(
    app: FastAPI, token: Token | None, metrics: Metrics, state: State, names: Sequence[str]
) -> None:
    async def healthz() -> HttpResponse:
        if state.stopping:
            raise Refusal(503, "the server stops")
        if set(state.fillers) != set(names):
            raise Refusal(503, "the model is being loaded", {"retry-after": "5"})
        return _json({"status": "ready", "models": names, "token_required": token is not None})

    async def prometheus(request: Request) -> HttpResponse:
        if token:
            token.check(request.headers)
        return HttpResponse(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    problem = {"model": schema.Problem}
    app.add_api_route(
        "/healthz",
        healthz,
        summary="Ready once every model is loaded",
        response_model=None,
        responses={
            200: {"model": schema.Health, "description": "Ready."},
            503: {**problem, "description": "Not yet, or not any more."},
        },
    )
    app.add_api_route(
        "/metrics",
        prometheus,
        summary="Figures for Prometheus",
        response_model=None,
        response_class=HttpResponse,
        responses={
            200: {"content": {"text/plain": {"schema": {"type": "string"}}}},
            401: {**problem, "description": _REASONS[401]},
        },
    )


def _constant(page: Any) -> Any:
    async def answer(request: Request) -> HttpResponse:
        response: HttpResponse = page()
        return response

    return answer


def _json(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> HttpResponse:
    return HttpResponse(orjson.dumps(content), status, headers, "application/json")


def _refused(request: Request, refusal: Exception) -> HttpResponse:
    assert isinstance(refusal, Refusal)
    return _json({"error": refusal.reason}, refusal.status, refusal.headers)


def _http_exception(request: Request, error: Exception) -> HttpResponse:
    """Answer what the router refuses, an unknown path or method, as everything else is."""
    assert isinstance(error, HTTPException)
    return _json({"error": error.detail}, error.status_code, dict(error.headers or {}))


def _openapi(app: FastAPI, model: type[BaseModel]) -> dict[str, Any]:
    """Return the document of all routes, that of filling included."""
    if app.openapi_schema:
        return app.openapi_schema
    document = get_openapi(
        title="fitb", version=fitb.__version__, description=_DESCRIPTION, routes=app.routes
    )
    models = [(model, "validation"), (schema.Response, "serialization")]
    _, definitions = models_json_schema(models, ref_template=_REFERENCE)  # type: ignore[arg-type]
    document["components"]["schemas"].update(definitions["$defs"])
    document["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    problem = _content("Problem")
    document["paths"][PATH] = {
        "post": {
            "summary": "Fill the blanks of texts",
            "operationId": "fill",
            "security": [{}, {"token": []}],
            "requestBody": {"required": True, "content": _content("Request")},
            "responses": {
                "200": {"description": "Filled.", "content": _content("Response")},
                **{
                    str(status): {"description": reason, "content": problem}
                    for status, reason in _REASONS.items()
                },
            },
        }
    }
    app.openapi_schema = document
    return document


def _content(name: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": _REFERENCE.format(model=name)}}}
