"""A file server on the loopback interface that can misbehave as asked."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType

import pytest


class FileServer:
    """Serves the files of a folder while the context is open.

    `break_after` ends each of the first `num_breaks` answers after so many bytes; `ranges` says
    whether Range requests are understood; `errors` are status codes for the first requests.
    """

    def __init__(
        self,
        folder: Path,
        *,
        ranges: bool = True,
        break_after: int | None = None,
        num_breaks: int = 0,
        errors: tuple[int, ...] = (),
    ) -> None:
        self.requests: list[str | None] = []  # the Range header of each request
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                wanted = self.headers.get("Range")
                outer.requests.append(wanted)
                number = len(outer.requests)
                path = folder / self.path.lstrip("/")
                if number <= len(errors):
                    return self.send_error(errors[number - 1])
                if not path.is_file():
                    return self.send_error(404)
                data = path.read_bytes()
                first = int(wanted[6:-1]) if wanted and ranges else 0
                if first >= len(data):
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{len(data)}")
                    return self.end_headers()
                self.send_response(206 if first else 200)
                self.send_header("Content-Length", str(len(data) - first))
                self.end_headers()
                broken = break_after is not None and number <= num_breaks
                end = first + break_after if broken and break_after is not None else len(data)
                self.wfile.write(data[first:end])
                return None

            def log_message(self, *args: object) -> None:
                return None

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    def __enter__(self) -> FileServer:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def file_server() -> type[FileServer]:
    """Return the server's class: test files cannot import from each other."""
    return FileServer
