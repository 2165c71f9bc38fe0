"""multipart/form-data with exactly one file (RFC 7578), cut apart while it streams in.

`FormFile` is fed the body in pieces of any size and gives back the file's bytes. It does no I/O and
keeps no more than a header block or a delimiter's length. Everything that isn't exactly one part
with a file name, framed from the first delimiter to the closing one, is an error, so that a body
cut short can never pass for a whole file.

    --boundary CRLF headers CRLF CRLF contents CRLF --boundary-- …
"""

from __future__ import annotations

import enum
from email.message import Message
from email.parser import HeaderParser

_HEADERS_SIZE_LIMIT = 16 * 1024
"""Bytes of a part's headers, with what may stand before the first delimiter."""


class MultipartError(ValueError):
    """The body is no multipart/form-data with exactly one file; says what is wrong."""


class _Expect(enum.Enum):
    FIRST_DELIMITER = "the first delimiter"
    HEADERS = "the end of the part's headers"
    CONTENTS = "the closing delimiter"
    CLOSING = "the end of the closing delimiter"
    END = "nothing"


def boundary_of(content_type: str) -> bytes:
    """The boundary parameter of a Content-Type. Raises MultipartError."""
    message = Message()
    message["Content-Type"] = content_type
    boundary = message.get_boundary()
    if not boundary or len(boundary) > 70 or not boundary.isascii():
        raise MultipartError("the Content-Type has no valid boundary (1 to 70 ASCII characters)")
    return boundary.encode()


class FormFile:
    """The one file of a form, as a machine without I/O."""

    def __init__(self, boundary: bytes) -> None:
        self._delimiter = b"\r\n--" + boundary
        # A delimiter begins with a line break; the first one may stand at the very start.
        self._buffer = bytearray(b"\r\n")
        self._expect = _Expect.FIRST_DELIMITER
        self.content_type: str | None = None
        """Of the part, once its headers were seen; None where it names none."""

    def feed(self, data: bytes) -> bytes:
        """Take the next piece of the body, return the contents in it. Raises MultipartError."""
        buffer = self._buffer
        buffer += data
        if self._expect is _Expect.FIRST_DELIMITER and not self._take_first_delimiter():
            return b""
        if self._expect is _Expect.HEADERS and not self._take_headers():
            return b""
        contents = b""
        if self._expect is _Expect.CONTENTS:
            found = buffer.find(self._delimiter)
            # What might be the beginning of a delimiter stays until more is known.
            until = found if found >= 0 else max(0, len(buffer) - len(self._delimiter) + 1)
            contents = bytes(memoryview(buffer)[:until])
            del buffer[:until]
            if found >= 0:
                del buffer[: len(self._delimiter)]
                self._expect = _Expect.CLOSING
        if self._expect is _Expect.CLOSING and len(buffer) >= 2:
            if buffer[:2] != b"--":
                raise MultipartError("the form has more than one part; send exactly one file")
            self._expect = _Expect.END
        if self._expect is _Expect.END:
            buffer.clear()
        return contents

    def finish(self) -> None:
        """The body has ended. Raises MultipartError if the form had not."""
        if self._expect is not _Expect.END:
            raise MultipartError(f"the form broke off before {self._expect.value}")

    def _take_first_delimiter(self) -> bool:
        found = self._buffer.find(self._delimiter)
        end = found + len(self._delimiter)
        if found < 0 or len(self._buffer) < end + 2:
            self._bound()
            return False
        if self._buffer[end : end + 2] != b"\r\n":
            raise MultipartError("the form has no part; send exactly one file")
        # The line break stays, so that a part without any headers looks like any other.
        del self._buffer[:end]
        self._expect = _Expect.HEADERS
        return True

    def _take_headers(self) -> bool:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            self._bound()
            return False
        headers = HeaderParser().parsestr(bytes(self._buffer[2:end]).decode("utf-8", "replace"))
        del self._buffer[: end + 4]
        disposition = headers.get_content_disposition()
        if disposition != "form-data" or headers.get_filename() is None:
            raise MultipartError("the form has a part without a file name; send exactly one file")
        if headers.get("Content-Transfer-Encoding", "binary").lower() not in ("binary", "8bit"):
            raise MultipartError("the part has a Content-Transfer-Encoding; send it as it is")
        self.content_type = headers.get("Content-Type")
        self._expect = _Expect.CONTENTS
        return True

    def _bound(self) -> None:
        if len(self._buffer) > _HEADERS_SIZE_LIMIT:
            raise MultipartError(f"nothing like {self._expect.value} within 16 KiB")
