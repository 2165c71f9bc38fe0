"""multipart/form-data: exactly one file, framed from end to end."""

from __future__ import annotations

import aiohttp
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.multipart import FormFile, MultipartError, boundary_of
from tests.gateway.serving import Serving, contents

BOUNDARY = b"xx--yy"
PART = b'Content-Disposition: form-data; name="f"; filename="n"\r\nContent-Type: text/x\r\n'


def form(data: bytes) -> bytes:
    return b"--xx--yy\r\n" + PART + b"\r\n" + data + b"\r\n--xx--yy--\r\n"


def cut(body: bytes, piece_size: int) -> bytes:
    machine = FormFile(BOUNDARY)
    pieces = [
        machine.feed(body[start : start + piece_size]) for start in range(0, len(body), piece_size)
    ]
    machine.finish()
    return b"".join(pieces)


@settings(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(
    data=st.lists(
        st.sampled_from([b"\r", b"\n", b"-", b"--", b"xx", b"\r\n--xx", b"--xx--y", b"abc", b"\0"]),
        max_size=30,
    ).map(b"".join),
    piece_size=st.integers(1, 40),
)
def test_contents_come_out_as_they_are(data: bytes, piece_size: int) -> None:
    """However the body arrives cut, and whatever resembles a delimiter in it."""
    if b"\r\n--xx--yy" in data:
        return
    assert cut(form(data), piece_size) == data


@settings(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.binary(max_size=50), piece_size=st.integers(1, 40), missing=st.integers(1, 14))
def test_a_form_cut_short_is_never_whole(data: bytes, piece_size: int, missing: int) -> None:
    """Until the closing delimiter is complete, the end of the body is an error."""
    body = form(data)[: -2 - missing]
    with pytest.raises(MultipartError):
        cut(body, piece_size)


@pytest.mark.parametrize(
    "body",
    [
        b"--xx--yy--\r\n",
        b"--xx--yy\r\n" + PART + b"\r\none\r\n--xx--yy\r\n" + PART + b"\r\ntwo\r\n--xx--yy--",
        b'--xx--yy\r\nContent-Disposition: form-data; name="f"\r\n\r\none\r\n--xx--yy--',
        b"--xx--yy\r\n\r\none\r\n--xx--yy--",
        b"--xx--yy\r\n" + PART + b"Content-Transfer-Encoding: base64\r\n\r\nb25l\r\n--xx--yy--",
        b"no form at all",
        b"--xx--yy\r\n" + b"x" * 20_000,
        b"",
    ],
)
@pytest.mark.parametrize("piece_size", [1, 7, 100_000])
def test_what_is_no_form_with_one_file(body: bytes, piece_size: int) -> None:
    """No part, two parts, a part without a file name, an encoding, no form: all are refused."""
    with pytest.raises(MultipartError):
        cut(body, piece_size)


def test_a_preamble_and_an_epilogue_are_ignored() -> None:
    """RFC 2046 §5.1.1: text before the first and behind the last delimiter means nothing."""
    assert cut(b"preamble\r\n" + form(b"data") + b"epilogue", 5) == b"data"


@pytest.mark.parametrize(
    "content_type", ["multipart/form-data", "multipart/form-data; boundary=" + "x" * 71]
)
def test_a_boundary_is_needed(content_type: str) -> None:
    """Without a valid boundary parameter a form can't be read."""
    with pytest.raises(MultipartError):
        boundary_of(content_type)


@pytest.mark.parametrize("size", [0, 100, 300_000])
async def test_a_form_is_uploaded(gateway: Serving, size: int) -> None:
    """What a browser's form sends is stored as the file in it, with the part's content type."""
    data = aiohttp.FormData()
    data.add_field("file", contents(size), filename="a.txt", content_type="text/plain")
    put = await gateway.file("POST", "box/f", data=data)
    assert put.status == 201, put.body
    got = await gateway.file("GET", "box/f")
    assert got.body == contents(size)
    assert got.headers["Content-Type"] == "text/plain"


async def test_a_wrong_form_stores_nothing(gateway: Serving) -> None:
    """Two files, or one of another size than announced, are refused and leave nothing visible."""
    data = aiohttp.FormData()
    data.add_field("one", contents(5000), filename="a")
    data.add_field("two", b"x", filename="b")
    assert (await gateway.file("POST", "box/f", data=data)).code == "invalid_multipart"
    data = aiohttp.FormData()
    data.add_field("one", contents(5000), filename="a")
    short = await gateway.file("POST", "box/f", data=data, headers={"X-File-Size": "5001"})
    assert short.code == "size_mismatch"
    headers = {"Content-Type": "multipart/form-data"}
    assert (await gateway.file("PUT", "box/f", data=b"x", headers=headers)).status == 400
    assert (await gateway.file("GET", "box/f")).status == 404


@pytest.mark.parametrize("content_type", ["text/x\r\n y", "text/\x7f", "t" * 300, "ü"])
async def test_a_content_type_that_cannot_go_back_is_refused(
    gateway: Serving, content_type: str
) -> None:
    """A part's Content-Type is checked like a request's: folded, unprintable, long ones are not."""
    part = b'Content-Disposition: form-data; name="f"; filename="n"\r\nContent-Type: '
    body = b"--xx--yy\r\n" + part + content_type.encode() + b"\r\n\r\none\r\n--xx--yy--\r\n"
    headers = {"Content-Type": "multipart/form-data; boundary=xx--yy"}
    refused = await gateway.file("PUT", "box/f", data=body, headers=headers)
    assert refused.code == "invalid_header"
