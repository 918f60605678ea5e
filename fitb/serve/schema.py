"""What a request and an answer look like: models that validate, document, and give examples.

Requests are parsed by orjson and validated by pydantic, which stops at the first faults. Answers
are built by hand, because they were made here; their models are for the OpenAPI document, and tests
hold both equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import orjson
from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    FailFast,
    Field,
    Tag,
    ValidationError,
    create_model,
    model_validator,
)

from fitb.infer.blanks import find_blanks
from fitb.infer.request import (
    Constraint,
    Filled,
    FillRequest,
    Order,
    Search,
    constraint_chars,
)
from fitb.serve.config import Limits
from fitb.serve.refusal import Refusal

_SENTENCE = "Returns a [MASK] of strings."
_PLAIN, _WHOLE = "a string", "an object"  # the two forms of a text
_REASONS = 5  # named of those that make a request invalid
_KEYS = 16  # of an object at most
_STRICT = ConfigDict(extra="forbid", strict=True, frozen=True)


def _few_keys(value: Any) -> Any:
    """Refuse an object of many keys at once: each unknown one would be an error of its own."""
    if isinstance(value, dict) and len(value) > _KEYS:
        raise ValueError(f"{len(value):,} keys, at most {_KEYS}")
    return value


_FEW_KEYS: dict[str, Any] = {"few_keys": model_validator(mode="before")(_few_keys)}
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


def request_model(limits: Limits, models: Sequence[str]) -> type[BaseModel]:
    """Return the model of a request's body within these limits.

    Args:
        models: names of those that are loaded.
    """
    text = Annotated[
        str,
        Field(
            min_length=1,
            max_length=limits.chars,
            description="with blanks: [MASK] is one piece, ___ one word, [SPAN] any pieces",
            examples=[_SENTENCE],
        ),
    ]
    whole = _text_model(limits, text)
    either: Any = Annotated[
        Annotated[text, Tag(_PLAIN)] | Annotated[whole, Tag(_WHOLE)],
        Discriminator(lambda value: _PLAIN if isinstance(value, str) else _WHOLE),
    ]
    texts: Any = Annotated[list[either], Field(min_length=1, max_length=limits.texts), FailFast()]
    names: Any = Literal[tuple(models)]
    return create_model(
        "Request",
        __config__=ConfigDict(**_STRICT, json_schema_extra={"example": EXAMPLE}),
        __validators__=_FEW_KEYS,
        __doc__="Texts to fill; a plain string is a text of which nothing more is asked.",
        texts=(texts, ...),
        model=_key(names, models[0], "which of the loaded models answers"),
    )


def _text_model(limits: Limits, text: Any) -> Any:
    constraint: Any = _constraint_model(limits)
    search = _search_model(limits)
    number = Annotated[int, Field(ge=0, lt=limits.blanks)]
    group: Any = Annotated[list[number], Field(min_length=1, max_length=limits.blanks), FailFast()]
    return create_model(
        "Text",
        __config__=_STRICT,
        __validators__=_FEW_KEYS,
        __doc__="A text with blanks, and what is asked of them.",
        text=(text, ...),
        search=_key(search, search(), "how answers are looked for"),
        constraints=_key(
            Annotated[list[constraint], Field(max_length=limits.blanks), FailFast()],
            [],
            "one for each blank in the order of the text, or one for all, or none",
        ),
        same=_key(
            Annotated[list[group], Field(max_length=limits.blanks), FailFast()],
            [],
            "groups of blanks, numbered from 0, whose answers are equal",
        ),
    )


def _default_search(limits: Limits) -> Search:
    default = Search()
    return Search(
        beam=min(default.beam, limits.beam),
        max_pieces=min(default.max_pieces, limits.max_pieces),
        top_k=min(default.top_k, limits.top_k),
    )


def _search_model(limits: Limits) -> type[BaseModel]:
    default = _default_search(limits)
    return create_model(
        "Search",
        __config__=_STRICT,
        __validators__=_FEW_KEYS,
        __doc__="How answers are looked for.",
        order=_key(
            Order,
            default.order,
            "which slot is filled next: the leftmost; the most certain; or that, then all again",
        ),
        beam=_count(default.beam, limits.beam, "partial fillings kept; 1 is greedy"),
        max_pieces=_count(
            default.max_pieces, limits.max_pieces, "pieces of a blank of unknown length at most"
        ),
        top_k=_count(default.top_k, limits.top_k, "fillings returned at most"),
    )


def _constraint_model(limits: Limits) -> type[BaseModel]:
    word: Any = Annotated[str, Field(min_length=1, max_length=limits.chars)]
    words = Annotated[list[word], Field(max_length=limits.candidates), FailFast()]
    regex = Annotated[str, Field(max_length=limits.regex_chars)]
    prefix = Annotated[str, Field(max_length=limits.chars)]
    return create_model(
        "Constraint",
        __config__=_STRICT,
        __validators__=_FEW_KEYS,
        __doc__="What an answer must be; all that is given must hold.",
        candidates=_key(words, [], "the only answers allowed, each whole"),
        regex=_key(regex, "", "the whole answer matches this regular expression"),
        prefix=_key(prefix, "", "the answer begins with it"),
        banned=_key(words, [], "words that the answer must not hold, in any case"),
    )


def _key(kind: Any, default: Any, description: str) -> tuple[Any, Any]:
    return kind, Field(default, description=description)


def _count(default: int, most: int, description: str) -> tuple[Any, Any]:
    return _key(Annotated[int, Field(ge=1, le=most)], default, description)


def read_request(
    model: type[BaseModel], body: bytes, limits: Limits
) -> tuple[str, list[FillRequest]]:
    """Return the name of the model asked for, and what it is asked.

    Raises: Refusal with 400 where the body is no JSON, with 422 where it breaks a limit.
    """
    try:
        asked: Any = model.model_validate(orjson.loads(body))
    except orjson.JSONDecodeError as error:
        raise Refusal(400, f"the body is not JSON in UTF-8: {error}") from None
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
        raise Refusal(
            422,
            f"the answer would have some {chars:,} characters, at most {limits.answer_chars:,};"
            " lower top_k, or send fewer texts at a time",
        )
    return asked.model, requests


def _check_text(number: int, request: FillRequest, limits: Limits) -> None:
    """Raise Refusal with 422 where a text as a whole asks for too much."""
    given = request.constraints
    counted = {
        "blanks": (len(find_blanks(request.text)), limits.blanks),
        "candidates": (sum(len(one.candidates) for one in given), limits.candidates),
        "banned words": (sum(len(one.banned) for one in given), limits.candidates),
        "characters in its constraints": (constraint_chars(request), limits.chars),
    }
    for what, (found, most) in counted.items():
        if found > most:
            raise Refusal(422, f"texts[{number}] has {found} {what}, at most {most}; split it")


def _fill_request(text: Any) -> FillRequest:
    search = text.search
    return FillRequest(
        text=text.text,
        search=Search(search.order, search.beam, search.max_pieces, search.top_k),
        constraints=tuple(
            Constraint(tuple(one.candidates), one.regex, one.prefix, tuple(one.banned))
            for one in text.constraints
        ),
        same=tuple(map(tuple, text.same)),
    )


def _refusal(error: ValidationError) -> Refusal:
    """Say where a body is wrong, and in what, without repeating what stands there."""
    found = error.errors(include_url=False, include_context=True, include_input=False)
    reasons = []
    for one in found[:_REASONS]:
        where = "".join(
            f"[{part}]" if isinstance(part, int) else f".{part}"
            for part in one["loc"]
            if part not in (_PLAIN, _WHOLE)
        )
        reasons.append(f"{where.lstrip('.') or 'body'}: {one['msg']}")
    more = f" (and {len(found) - _REASONS} more)" if len(found) > _REASONS else ""
    return Refusal(422, "; ".join(reasons) + more)


class Answer(BaseModel):
    """What stands in one blank."""

    text: str = Field(description="as it stands in the sentence", examples=["list"])
    begin: int = Field(description="first character in the sentence", examples=[10])
    end: int = Field(description="one after its last", examples=[14])
    pieces: list[str] = Field(description="'##' continues a word", examples=[["list"]])
    probability: float = Field(
        description="of its pieces, each given what was filled before it", examples=[0.28]
    )


class Filling(BaseModel):
    """One way to fill all blanks of a text."""

    sentence: str = Field(examples=["Returns a list of strings."])
    answers: list[Answer] = Field(description="in the order of the blanks")
    probability: float = Field(description="of all answers together", examples=[0.28])
    log_probability: float = Field(description="its natural logarithm", examples=[-1.27])
    score: float = Field(
        description="log_probability / pieces ** 0.6; fillings are ranked by it", examples=[-1.27]
    )


class Blank(BaseModel):
    """A blank as it was written; characters are Unicode code points, the end is excluded."""

    begin: int = Field(examples=[10])
    end: int = Field(examples=[16])
    kind: Literal["mask", "word", "span"]


class FilledText(BaseModel):
    """A text's blanks, and the best ways to fill them, best first; none where none is allowed."""

    blanks: list[Blank]
    fillings: list[Filling]


class Response(BaseModel):
    """One entry for each text, in their order."""

    model: str = Field(description="which answered", examples=["student"])
    texts: list[FilledText]


class Health(BaseModel):
    """That the server is ready."""

    status: Literal["ready"]
    models: list[str] = Field(examples=[["student", "teacher"]])
    token_required: bool = Field(description="whether /v1/fill wants a bearer token")


class Problem(BaseModel):
    """Why a request was not served."""

    error: str = Field(examples=["texts[0]: the text has no blank; write [MASK], ___ or [SPAN]"])


def response(model: str, texts: Sequence[bytes]) -> bytes:
    """Return what `Response` describes, of texts that are encoded already."""
    return b'{"model":%s,"texts":[%s]}' % (orjson.dumps(model), b",".join(texts))


def encoded(filled: Filled) -> bytes:
    """Return what `FilledText` describes."""
    content = {
        "blanks": [
            {"begin": blank.begin, "end": blank.end, "kind": blank.kind} for blank in filled.blanks
        ],
        "fillings": [
            {
                "sentence": filling.sentence,
                "answers": [
                    {
                        "text": answer.text,
                        "begin": answer.begin,
                        "end": answer.end,
                        "pieces": answer.pieces,
                        "probability": answer.probability,
                    }
                    for answer in filling.answers
                ],
                "probability": filling.probability,
                "log_probability": filling.log_probability,
                "score": filling.score,
            }
            for filling in filled.fillings
        ],
    }
    return orjson.dumps(content)
