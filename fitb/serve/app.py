"""ASGI application: routes, OpenAPI document and web page."""

import mimetypes
from collections.abc import Callable, Mapping
from importlib import resources

from fastapi import Depends, FastAPI
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Route

import fitb
from fitb.serve import schema
from fitb.serve.endpoint import PATH, FillEndpoint
from fitb.serve.metrics import Metrics
from fitb.serve.middleware import Middleware, failed, refused
from fitb.serve.request_checks import Token, hosts_of
from fitb.serve.serve_config import ServeConfig
from fitb.serve.worker import Worker

_PAGE_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self';"
        " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}
_DESCRIPTION = """
Fill in the blanks of texts. A blank is written `[MASK]` (one subword), `___` (one word) or `[SPAN]`
(any subwords). Offsets count Unicode code points. Responses other than 200 give the reason in
`error`; retry after 503 and 504.
"""
_REASONS = {
    400: "The body is not JSON in UTF-8.",
    401: "The token is missing or wrong.",
    408: "The body was sent too slowly.",
    413: "The body is too large.",
    415: "The body is not of type application/json.",
    421: "The Host header is not a name of this server.",
    422: "The request exceeds a limit, or cannot be filled.",
    500: "Internal server error.",
    503: "The models are loading, or the queue is full; see Retry-After.",
    504: "Not filled before the deadline.",
}


def make_app(
    config: ServeConfig,
    token: Token | None,
    metrics: Metrics,
    workers: Mapping[str, Worker],
    stopping: Callable[[], bool],
) -> Middleware:
    """Build the ASGI application; its arguments are those of FillEndpoint and Middleware."""
    names = list(config.sources)
    model = schema.request_model(config.limits, names)
    endpoint = FillEndpoint(config, token, model, workers)
    app = FastAPI(
        title="fitb",
        version=fitb.__version__,
        description=_DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        routes=[Route(PATH, endpoint.fill, methods=["POST"]), *_page()],
        exception_handlers={HTTPException: refused, Exception: failed},
    )
    guarded = [Depends(token)] if token else []

    @app.post(
        PATH,
        summary="Fill the blanks of texts",
        operation_id="fill",
        dependencies=guarded,
        response_description="Filled.",
        responses=_problems(*_REASONS),
    )
    def fill(body: model) -> schema.Response:  # type: ignore[valid-type]
        raise NotImplementedError  # documents the plain route before it; never called

    @app.get("/healthz", summary="Ready if every model is loaded", responses=_problems(503))
    async def healthz() -> schema.Health:
        if stopping():
            raise HTTPException(503, "the server is shutting down")
        if set(workers) != set(names):
            raise HTTPException(503, "the models are loading", {"retry-after": "5"})
        return schema.Health(models=names, token_required=token is not None)

    @app.get(
        "/metrics",
        summary="Metrics for Prometheus",
        dependencies=guarded,
        response_class=Response,
        responses={
            200: {"content": {"text/plain": {"schema": {"type": "string"}}}},
            **_problems(401),
        },
    )
    async def prometheus() -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return Middleware(app, metrics, hosts_of(config, token is not None), stopping)


def _problems(*statuses: int) -> dict[int | str, dict[str, object]]:
    """Return the OpenAPI descriptions of error responses by status."""
    return {one: {"model": schema.Problem, "description": _REASONS[one]} for one in statuses}


def _page() -> list[Route]:
    """Return a route for each file of the web page."""
    routes = []
    for file in (resources.files("fitb.serve") / "page").iterdir():
        path = "/" if file.name == "index.html" else f"/{file.name}"
        kind, _ = mimetypes.guess_type(file.name)
        page = Response(file.read_bytes(), media_type=kind, headers=_PAGE_HEADERS)
        routes.append(Route(path, page, methods=["GET"], include_in_schema=False))
    return routes
