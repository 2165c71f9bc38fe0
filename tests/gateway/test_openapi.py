"""The published document is true: every route, every status, every schema."""

from __future__ import annotations

import asyncio
import html.parser
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.strategies
import pytest
import schemathesis
from schemathesis.checks import CHECKS
from schemathesis.core.result import Ok
from schemathesis.generation import GenerationMode

from gateway.app import routes
from gateway.documents import Problem
from gateway.errors import CODES
from gateway.openapi import docs_page, openapi_document
from gateway.operation import COMMON_REFUSALS
from gateway.operations import OPERATIONS
from gateway.paths import parse_target
from metadata_raft.commands import FAILURE_CODES
from tests.gateway.serving import Serving, contents, serving


def test_operations_and_routes_are_the_same() -> None:
    """What is served is documented, and what is documented is served."""

    class Anything:
        def __getattr__(self, name: str) -> object:
            return self

    served = {
        (method, template)
        for template, methods in routes(Anything()).items()  # type: ignore[arg-type]
        for method in methods
    }
    assert served == {(operation.method, operation.template) for operation in OPERATIONS}


def test_templates_lead_to_themselves() -> None:
    """Every documented template is what a target of its form is parsed to."""
    for operation in OPERATIONS:
        raw = operation.template.replace("{bucket}", "box").replace("{path}", "a/b")
        raw = raw.replace("{file_id}", "1").replace("{key_id}", "0123456789abcdef")
        raw = raw.replace("{node_id}", "01234567-89ab-cdef-0123-456789abcdef")
        assert parse_target(raw).route == operation.template


def test_every_code_is_in_the_table() -> None:
    """Operations name no code that has no status; the state machine's codes all have one."""
    for operation in OPERATIONS:
        assert set(operation.refusals) | set(COMMON_REFUSALS) <= set(CODES)
    assert set(CODES) >= FAILURE_CODES


def test_the_guide_to_the_api_names_every_code_with_its_status() -> None:
    """The table in docs/api.md, row by row: statuses, then their codes, both parted alike."""
    text = (Path(__file__).parents[2] / "docs" / "api.md").read_text()
    named: dict[str, int] = {}
    for statuses, codes in re.findall(r"^\| (\d{3}[\d, ]*) \| (`.*) \|$", text, re.MULTILINE):
        parted = codes.split("; ") if "," in statuses else [codes]
        for status, group in zip(statuses.split(", "), parted, strict=True):
            named.update(dict.fromkeys(re.findall(r"`([a-z_]+)`", group), int(status)))
    assert named == {code: CODES[code].status for code in CODES}


def test_the_document_has_the_schemas_it_refers_to() -> None:
    """Every reference resolves."""
    document = openapi_document()
    schemas = document["components"]["schemas"]

    def references(node: Any) -> Iterator[str]:
        if isinstance(node, dict):
            if "$ref" in node:
                yield node["$ref"]
            for value in node.values():
                yield from references(value)
        elif isinstance(node, list):
            for value in node:
                yield from references(value)

    names = {reference.rpartition("/")[2] for reference in references(document)}
    assert names <= set(schemas)
    assert Problem.__name__ in names


async def test_the_page_needs_nothing_from_elsewhere(gateway: Serving) -> None:
    """/docs is one page without scripts or foreign resources, and shows every operation."""
    answer = await gateway.request("GET", "/docs", key=None)
    assert answer.headers["Content-Type"].startswith("text/html")
    page = answer.body.decode()
    assert page == docs_page()

    class Reader(html.parser.HTMLParser):
        def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
            assert tag not in {"script", "img", "link", "iframe", "object"}
            for name, value in attributes:
                assert name not in {"src", "onclick", "style"}
                assert name != "href" or (value or "").startswith("/")

    Reader().feed(page)
    for operation in OPERATIONS:
        assert f"{operation.method} {operation.template}" in page


class BackgroundGateway:
    """A gateway on a loop of its own thread: schemathesis calls synchronously."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    def __enter__(self) -> BackgroundGateway:
        self._thread.start()
        assert self._started.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join()

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()
        async with serving(self._directory) as gateway:
            self._gateway = gateway
            self.url, self.key = gateway.url, gateway.admin_key
            self._started.set()
            await self._ended.wait()

    def furnish(self) -> None:
        """Make sure that what the narrowed document names is there, as far as it shall be."""
        asyncio.run_coroutine_threadsafe(self._furnish(), self._loop).result(10)

    async def _furnish(self) -> None:
        await self._gateway.make_bucket("abc", visibility="public-read-write")
        await self._gateway.file("PUT", "abc/x", data=b"0123456789")
        big = await self._gateway.file("PUT", "abc/a/b", data=contents(10_000))
        NARROWED["file_id"][0] = big.json["file_id"]


@pytest.fixture(scope="module")
def background(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BackgroundGateway]:
    directory: Path = tmp_path_factory.mktemp("gateway")
    with BackgroundGateway(str(directory)) as gateway:
        yield gateway


NARROWED: dict[str, list[Any]] = {
    "bucket": ["abc", "abc", "none"],
    "path": ["x", "a/b", "none"],
    "file_id": [1, 999],
    "Range": ["bytes=2-5", "bytes=9-", "bytes=99999-"],
}
"""Values that meet what is there: random ones would see little but 404."""


def narrowed_document() -> dict[str, Any]:
    document = openapi_document()
    for methods in document["paths"].values():
        for operation in methods.values():
            for parameter in operation["parameters"]:
                if parameter["name"] in NARROWED:
                    parameter["schema"] = {"enum": NARROWED[parameter["name"]]}
    return document


_UNFIT = {
    # What a bucket's visibility allows needs no key; the table of roles is tested elsewhere.
    "ignored_auth",
    # Odd values that are none by the schema's letter are often still names and numbers here:
    # unknown headers, `limit=+1`. What must be refused is tested one by one elsewhere.
    "negative_data_rejection",
    "positive_data_acceptance",
}


@pytest.mark.parametrize("key", [None, "admin"])
def test_answers_are_as_documented(background: BackgroundGateway, key: str | None) -> None:
    """Generated requests, valid and not, get documented statuses, types and documents; no 500."""
    background.furnish()
    schema = schemathesis.openapi.from_dict(narrowed_document())
    checks: Any = [check for check in CHECKS.get_all() if check.__name__ not in _UNFIT]
    headers = {} if key is None else {"Authorization": f"Bearer {background.key}"}
    for result in schema.get_all_operations():
        assert isinstance(result, Ok), result
        operation = result.ok()
        background.furnish()
        modes = [operation.as_strategy(generation_mode=mode) for mode in GenerationMode]

        @hypothesis.settings(
            max_examples=5,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        @hypothesis.given(case=hypothesis.strategies.one_of(modes))
        def run(case: schemathesis.Case[Any]) -> None:
            case.call_and_validate(
                base_url=background.url, headers=headers, checks=checks, timeout=10
            )

        run()
