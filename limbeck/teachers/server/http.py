"""The server itself: the standard library's, one thread a request, one request at a time on the model."""

from __future__ import annotations

import hmac
import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from limbeck.errors import LimbeckError, RecipeError
from limbeck.teachers.server.protocol import Protocol
from limbeck.teachers.server.scoring import Scorer

_LARGEST = 64 << 20


class TeacherServer:
    """Serves a language model on a port of this machine.

    Endpoints: ``GET /v1/models``, ``POST /v1/completions``, ``POST /v1/chat/completions``. Log-probabilities are those
    of the distribution at the temperature of the request, of the prompt too (``echo``), and of as many tokens as asked.

    Args:
        scorer: the model.
        name: what the model is called.
        host: the address to listen on; only this machine by default.
        port: the port; a free one when 0.
        key: what clients must send as a bearer token; nothing when None.

    Raises:
        RecipeError: the address or port cannot be had.

    Example:
        >>> import torch, json, urllib.request
        >>> from limbeck.data.text import load_tokenizer
        >>> from limbeck.students.language import build_language_model
        >>> model = build_language_model({"name": "llama", "width": 8, "heads": 2}, vocabulary=257, context=64)
        >>> with TeacherServer(Scorer(model, load_tokenizer("bytes")), "tiny") as server:
        ...     json.load(urllib.request.urlopen(server.url + "/models"))["data"][0]["id"]
        'tiny'
    """

    def __init__(
        self, scorer: Scorer, name: str, *, host: str = "127.0.0.1", port: int = 0, key: str | None = None
    ) -> None:
        self.protocol = Protocol(scorer, name)
        try:
            self._server = ThreadingHTTPServer((host, port), _handler(self.protocol, key))
        except OSError as error:
            raise RecipeError(
                f"cannot listen on {host}:{port}: {error.strerror or error}; choose another port"
            ) from None
        self._server.daemon_threads = True
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        """The base address that clients are given, ending in ``/v1``."""
        host, port = self._server.server_address[:2]
        return f"http://{host!s}:{port}/v1"

    def __enter__(self) -> TeacherServer:
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def run(self) -> None:
        """Serves until interrupted."""
        try:
            self._server.serve_forever()
        finally:
            self._server.server_close()


def _handler(protocol: Protocol, key: str | None) -> type[BaseHTTPRequestHandler]:
    answers: dict[tuple[str, str], Callable[[Any], dict[str, Any]]] = {
        ("GET", "/v1/models"): lambda _: protocol.models(),
        ("GET", "/health"): lambda _: {"status": "ok"},
        ("POST", "/v1/completions"): protocol.complete,
        ("POST", "/v1/chat/completions"): protocol.chat,
    }

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._respond("GET", None)

        def do_POST(self) -> None:
            self._respond("POST", self._body())

        def _body(self) -> Any:
            length = self.headers.get("Content-Length", "")
            if not length.isdigit() or int(length) > _LARGEST:
                self.close_connection = True
                return RecipeError(f"the request needs a Content-Length of at most {_LARGEST} bytes")
            try:
                body = json.loads(self.rfile.read(int(length)))
            except (ValueError, RecursionError):
                return RecipeError("the request is not JSON")
            return body if isinstance(body, dict) else RecipeError("the request should be a JSON object")

        def _respond(self, method: str, body: Any) -> None:
            sent = self.headers.get("Authorization", "").removeprefix("Bearer ")
            if key is not None and not hmac.compare_digest(sent.encode(), key.encode()):
                return self._send(401, _failure("wrong or missing key", "authentication_error"))
            answer = answers.get((method, self.path.partition("?")[0].rstrip("/")))
            if answer is None:
                return self._send(404, _failure(f"there is no {method} {self.path}", "not_found"))
            if isinstance(body, LimbeckError):
                return self._send(400, _failure(str(body), "invalid_request_error"))
            try:
                return self._send(200, answer(body))
            except LimbeckError as error:
                return self._send(400, _failure(str(error), "invalid_request_error"))
            except Exception as error:  # One request must not end the server.
                return self._send(500, _failure(f"{type(error).__name__}: {error}", "server_error"))

        def _send(self, status: int, content: dict[str, Any]) -> None:
            payload = json.dumps(content).encode()
            try:
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(payload)))
                self.end_headers()
                self.wfile.write(payload)
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True

        def log_message(self, format: str, *args: Any) -> None:
            """Says nothing: a busy teacher would fill the terminal."""

    return Handler


def _failure(message: str, kind: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": None, "code": None}}


def serve(
    teacher: str,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    precision: str = "fp32",
    most: int = 1000,
    key: str | None = None,
) -> TeacherServer:
    """Returns a server of a language model by name, ready to :meth:`~TeacherServer.run`.

    Args:
        teacher: ``hf:NAME_OR_FOLDER``, ``gguf:FILE``, a packaged model, or a folder that a run left.
        host: the address to listen on.
        port: the port; a free one when 0.
        precision: ``fp32`` or ``bf16``.
        most: log-probabilities a place that may be asked for.
        key: what clients must send as a bearer token.

    Raises:
        LimbeckError: there is no such model, or the port cannot be had.
    """
    from limbeck.data.text import load_tokenizer
    from limbeck.students.language import build_language_model

    if precision not in ("fp32", "bf16"):
        raise RecipeError(f"precision is fp32 or bf16, not '{precision}'")
    tokenizer = load_tokenizer(teacher)
    model = build_language_model(teacher, vocabulary=tokenizer.vocabulary, context=1)
    name = teacher.rstrip("/").rpartition("/")[2].removeprefix("hf:")
    return TeacherServer(Scorer(model, tokenizer, most=most, precision=precision), name, host=host, port=port, key=key)
