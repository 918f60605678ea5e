"""pydantic models of requests and responses: validation, OpenAPI schema and examples.

Validation of a body stops at the first few errors. Responses are serialised from the attributes of
the results of filling.
"""

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import docstring_parser
from fastapi import HTTPException
from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    FailFast,
    Field,
    StrictInt,
    Tag,
    ValidationError,
    create_model,
    model_validator,
)

from fitb.infer.blanks import find_blanks
from fitb.infer.request import Constraint, Filled, FillRequest, Kind, Order, Search
from fitb.serve.request_limits import Limits

_SENTENCE = "Returns a [MASK] of strings."
_PLAIN, _WHOLE = "a string", "an object"  # the two forms of a text
_REASONS = 5  # most errors named in a response
_KEYS = 16  # most keys of an object
EXAMPLE: dict[str, Any] = {
    "texts": [
        _SENTENCE,
        {
            "text": "Raises a ___ if the [SPAN] does not exist.",
            "search": {"order": "confidence", "top_k": 3},
            "constraints": [{"banned": ["warning"]}, {}],
        },
    ]
}


class _Object(BaseModel):
    """Base of request objects: unknown keys are errors, and too many keys are one error."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _few_keys(cls, value: Any) -> Any:
        if isinstance(value, dict) and len(value) > _KEYS:
            raise ValueError(f"{len(value):,} keys, at most {_KEYS}")
        return value


def request_model(limits: Limits, models: Sequence[str]) -> type[BaseModel]:
    """Return the pydantic model of a request body.

    Args:
        limits: limits of a request.
        models: names of the loaded models, the default first.
    """
    text = Annotated[str, Field(min_length=1, max_length=limits.chars, examples=[_SENTENCE])]
    either: Any = Annotated[
        Annotated[text, Tag(_PLAIN)] | Annotated[_text_model(limits, text), Tag(_WHOLE)],
        Discriminator(lambda value: _PLAIN if isinstance(value, str) else _WHOLE),
    ]
    names: Any = Literal[tuple(models)]

    class Request(_Object):
        """Texts to fill; a plain string is a text without settings or constraints."""

        model_config = ConfigDict(json_schema_extra={"example": EXAMPLE})

        texts: Annotated[list[either], FailFast()] = Field(min_length=1, max_length=limits.texts)
        model: names = Field(models[0], description="name of the model to use")

    return Request


def _text_model(limits: Limits, text: Any) -> Any:
    word: Any = Annotated[str, Field(min_length=1, max_length=limits.chars)]
    words = Annotated[tuple[word, ...], Field(max_length=limits.candidates), FailFast()]
    blank: Any = Annotated[StrictInt, Field(ge=0, lt=limits.blanks)]
    group: Any = Annotated[
        tuple[blank, ...], Field(min_length=1, max_length=limits.blanks), FailFast()
    ]
    search = _model_of(
        _default_search(limits),
        order=Order,
        beam=Annotated[StrictInt, Field(ge=1, le=limits.beam)],
        max_pieces=Annotated[StrictInt, Field(ge=1, le=limits.max_pieces)],
        top_k=Annotated[StrictInt, Field(ge=1, le=limits.top_k)],
    )
    constraint: Any = _model_of(
        Constraint(),
        candidates=words,
        regex=Annotated[str, Field(max_length=limits.regex_chars)],
        prefix=Annotated[str, Field(max_length=limits.chars)],
        banned=words,
    )
    return _model_of(
        FillRequest(text=..., search=search()),  # type: ignore[arg-type]
        "Text",
        text=text,
        search=search,
        constraints=Annotated[tuple[constraint, ...], Field(max_length=limits.blanks), FailFast()],
        same=Annotated[tuple[group, ...], Field(max_length=limits.blanks), FailFast()],
    )


def _model_of(default: Any, name: str = "", **types: Any) -> Any:
    """Return a pydantic model of a dataclass: documented and with defaults (or ...) as it has."""
    about = docstring_parser.parse(type(default).__doc__ or "")
    said = {each.arg_name: each.description for each in about.params}
    fields: Any = {
        field: (kind, Field(getattr(default, field), description=said[field]))
        for field, kind in types.items()
    }
    name = name or type(default).__name__
    return create_model(name, __base__=_Object, __doc__=about.short_description, **fields)


def _default_search(limits: Limits) -> Search:
    default = Search()
    return Search(
        beam=min(default.beam, limits.beam),
        max_pieces=min(default.max_pieces, limits.max_pieces),
        top_k=min(default.top_k, limits.top_k),
    )


def read_request(
    model: type[BaseModel], body: bytes, limits: Limits
) -> tuple[str, list[FillRequest]]:
    """Parse a body into the name of the model and its requests.

    Args:
        model: pydantic model of the body.
        body: JSON in UTF-8.
        limits: limits of a request.
    Raises: HTTPException 400 if the body is not JSON, 422 if it is invalid or exceeds a limit.
    """
    try:
        asked: Any = model.model_validate_json(body)
    except ValidationError as error:
        raise _refusal(error) from None
    default = _default_search(limits)
    requests = [
        FillRequest(text, default) if isinstance(text, str) else _fill_request(text)
        for text in asked.texts
    ]
    for number, request in enumerate(requests):
        _check_text(number, request, limits)
    chars = sum(len(request.text) * request.search.top_k for request in requests)
    if chars > limits.answer_chars:
        raise HTTPException(
            422,
            f"the response would have about {chars:,} characters, at most"
            f" {limits.answer_chars:,}; lower top_k, or send fewer texts",
        )
    return asked.model, requests


def _check_text(number: int, request: FillRequest, limits: Limits) -> None:
    """Raise HTTPException 422 if a text as a whole exceeds a limit."""
    given = request.constraints
    counted = {
        "blanks": (len(find_blanks(request.text)), limits.blanks),
        "candidates": (sum(len(one.candidates) for one in given), limits.candidates),
        "banned words": (sum(len(one.banned) for one in given), limits.candidates),
        "characters in its constraints": (sum(map(len, request.words)), limits.chars),
    }
    for what, (found, most) in counted.items():
        if found > most:
            raise HTTPException(
                422, f"texts[{number}] has {found} {what}, at most {most}; split it"
            )


def _fill_request(text: Any) -> FillRequest:
    constraints = tuple(Constraint(**dict(one)) for one in text.constraints)
    return FillRequest(text.text, Search(**dict(text.search)), constraints, text.same)


def _refusal(error: ValidationError) -> HTTPException:
    """Return the error response for a body, with the paths of wrong values but not the values."""
    found = error.errors(include_url=False, include_input=False)
    if found[0]["type"] == "json_invalid":
        return HTTPException(400, f"the body is not JSON in UTF-8: {found[0]['ctx']['error']}")
    reasons = []
    for one in found[:_REASONS]:
        where = "".join(
            f"[{part}]" if isinstance(part, int) else f".{part}"
            for part in one["loc"]
            if part not in (_PLAIN, _WHOLE)
        )
        reasons.append(f"{where.lstrip('.') or 'body'}: {one['msg']}")
    more = f" (and {len(found) - _REASONS} more)" if len(found) > _REASONS else ""
    return HTTPException(422, "; ".join(reasons) + more)


class AnswerOut(BaseModel):
    """The answer to one blank."""

    text: str = Field(description="answer as it is written in the sentence", examples=["list"])
    begin: int = Field(description="first character in the sentence", examples=[10])
    end: int = Field(description="one after the last character", examples=[14])
    pieces: list[str] = Field(description="subwords; '##' continues a word", examples=[["list"]])
    probability: float = Field(
        description="product over the subwords, each given those filled before it", examples=[0.28]
    )


class FillingOut(BaseModel):
    """One way to fill all blanks of a text."""

    sentence: str = Field(examples=["Returns a list of strings."])
    answers: list[AnswerOut] = Field(description="in the order of the blanks")
    probability: float = Field(description="joint probability of all answers", examples=[0.28])
    log_probability: float = Field(description="its natural logarithm", examples=[-1.27])
    score: float = Field(
        description="log_probability / number of subwords ** 0.6; ranks fillings", examples=[-1.27]
    )


class BlankOut(BaseModel):
    """A blank, from character `begin` to `end` (excluded), in Unicode code points."""

    begin: int = Field(examples=[10])
    end: int = Field(examples=[16])
    kind: Kind


class FilledText(BaseModel):
    """The blanks of a text and its fillings, best first; empty if no answer is allowed."""

    blanks: list[BlankOut]
    fillings: list[FillingOut]


class Response(BaseModel):
    """The results, one per text, in order."""

    model: str = Field(description="name of the model", examples=["student"])
    texts: list[FilledText]


class Health(BaseModel):
    """The server is ready."""

    status: Literal["ready"] = "ready"
    models: list[str] = Field(examples=[["student", "teacher"]])
    token_required: bool = Field(description="whether /v1/fill requires a bearer token")


class Problem(BaseModel):
    """The reason why a request was not served."""

    error: str = Field(examples=["texts[0]: the text has no blank; write [MASK], ___ or [SPAN]"])


def response(model: str, texts: Sequence[bytes]) -> bytes:
    """Serialise a `Response` from texts that are serialised already."""
    return b'{"model":%s,"texts":[%s]}' % (json.dumps(model).encode(), b",".join(texts))


def encoded(filled: Filled) -> bytes:
    """Serialise a result as a `FilledText`."""
    return FilledText.model_validate(filled, from_attributes=True).model_dump_json().encode()
