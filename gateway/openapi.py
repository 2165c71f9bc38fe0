"""/openapi.json and /docs: the operations as an OpenAPI 3.1 document and as a page.

Both are made once, at start. The page is plain HTML without scripts, so that it needs nothing from
elsewhere and stays within the strictest content security policy.
"""

from __future__ import annotations

import html
from collections.abc import Iterable
from typing import Any

import msgspec
import orjson
from aiohttp import web

from gateway.backends import Call
from gateway.documents import Problem
from gateway.errors import CODES, PROTECTIVE_HEADERS
from gateway.operation import COMMON_REFUSALS, Operation, Parameter
from gateway.operations import OPERATIONS

_REFERENCES = "#/components/schemas/{name}"

_INTRODUCTION = (
    "Errors are problem documents (RFC 9457) with a stable `code`. HEAD is answered wherever GET "
    "is. An API key goes into `Authorization: Bearer <key>` or `X-Api-Key`; what a bucket's "
    "visibility allows needs none."
)

_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
    "code{background:#eee;padding:.1em .3em}section{border-top:1px solid #ccc}"
    "table{border-collapse:collapse}td{padding:.1rem 1rem .1rem 0;vertical-align:top}"
)


class Documentation:
    """Serves both forms."""

    def __init__(self) -> None:
        self._json = orjson.dumps(openapi_document())
        self._page = docs_page().encode()

    async def openapi(self, _: Call) -> web.StreamResponse:
        headers = {**PROTECTIVE_HEADERS, "Content-Type": "application/json"}
        return web.Response(body=self._json, headers=headers)

    async def page(self, _: Call) -> web.StreamResponse:
        headers = {
            **PROTECTIVE_HEADERS,
            "Content-Security-Policy": "sandbox; default-src 'none'; style-src 'unsafe-inline'",
            "Content-Type": "text/html; charset=utf-8",
        }
        return web.Response(body=self._page, headers=headers)


def openapi_document() -> dict[str, Any]:
    """The whole API as an OpenAPI 3.1 document."""
    kinds = {Problem, *_documents(OPERATIONS)}
    _, components = msgspec.json.schema_components(kinds, ref_template=_REFERENCES)
    by_path: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        methods = by_path.setdefault(operation.template, {})
        methods[operation.method.lower()] = _operation(operation)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Holdfast", "version": "1", "description": _INTRODUCTION},
        "paths": by_path,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "header": {"type": "apiKey", "in": "header", "name": "X-Api-Key"},
            },
        },
    }


def refusal_statuses(operation: Operation) -> dict[int, list[str]]:
    """The codes with which an operation may be refused, by status."""
    statuses: dict[int, list[str]] = {}
    for code in dict.fromkeys((*COMMON_REFUSALS, *operation.refusals)):
        statuses.setdefault(CODES[code].status, []).append(code)
    return dict(sorted(statuses.items()))


def _documents(operations: Iterable[Operation]) -> Iterable[type[msgspec.Struct]]:
    for operation in operations:
        for kind in (*operation.answers.values(), operation.body):
            if isinstance(kind, type):
                yield kind


def _operation(operation: Operation) -> dict[str, Any]:
    responses: dict[str, Any] = {
        str(status): {"description": "Done.", **_content(kind)}
        for status, kind in operation.answers.items()
    }
    for status, codes in refusal_statuses(operation).items():
        responses[str(status)] = {
            "description": f"Refused: {', '.join(codes)}.",
            "content": {
                "application/problem+json": {"schema": {"$ref": _REFERENCES.format(name="Problem")}}
            },
        }
    described: dict[str, Any] = {
        "operationId": operation.operation_id,
        "summary": operation.summary,
        "parameters": [_parameter(parameter) for parameter in operation.parameters],
        "responses": responses,
        "security": [] if operation.is_open else [{"bearer": []}, {"header": []}, {}],
    }
    if operation.body is not None:
        described["requestBody"] = {
            "required": operation.body_required,
            **_content(operation.body),
        }
    return described


def _parameter(parameter: Parameter) -> dict[str, Any]:
    return {
        "name": parameter.name,
        "in": parameter.location,
        "required": parameter.location == "path",
        "description": parameter.description,
        "schema": parameter.schema,
    }


def _content(kind: type[msgspec.Struct] | str | None) -> dict[str, Any]:
    if kind is None:
        return {}
    if isinstance(kind, str):
        return {"content": {kind: {}}}
    schema = {"$ref": _REFERENCES.format(name=kind.__name__)}
    return {"content": {"application/json": {"schema": schema}}}


def docs_page() -> str:
    """The operations as one page of HTML."""
    sections = "".join(map(_section, OPERATIONS))
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><title>Holdfast API</title>"
        f"<style>{_STYLE}</style><h1>Holdfast API</h1><p>{_text(_INTRODUCTION)}</p>"
        f"<p>For programs: <a href=/openapi.json>openapi.json</a></p>{sections}</html>"
    )


def _section(operation: Operation) -> str:
    parameters = "".join(
        f"<tr><td><code>{_text(parameter.name)}</code><td>{parameter.location}"
        f"<td>{_text(parameter.description)}"
        for parameter in operation.parameters
    )
    answers = ", ".join(map(str, operation.answers))
    refusals = "".join(
        f"<tr><td>{status}<td>{_text(', '.join(codes))}"
        for status, codes in refusal_statuses(operation).items()
    )
    return (
        f"<section><h2><code>{operation.method} {_text(operation.template)}</code></h2>"
        f"<p>{_text(operation.summary)}</p><table>{parameters}</table>"
        f"<p>Answers {answers}; refusals:</p><table>{refusals}</table></section>"
    )


def _text(value: str) -> str:
    return html.escape(value)
