"""HTTP: GraphQL, the stream of each run's rows, and files that are put and got."""

import gzip
import json
import re
import sys
import threading
import time
import traceback
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

from tests.loopback_wandb.answers import Answers, UnknownError

STREAM = re.compile(r"/files/(.*?)/(.*?)/(.*?)/file_stream")


class Server(Answers):
    """Serves from construction to `stop`, or until it dies."""

    def __init__(self) -> None:
        super().__init__()
        self.latency = 0.0
        """Seconds that what is sent is under way, and its answer."""
        self.dead = False
        """Whether it drops every connection, as a server that has died."""
        self.dies_after = 1_000_000
        """Runs that it takes to their end before it dies."""
        self.http = _Http(("127.0.0.1", 0), _Handler)
        self.http.state = self
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self.http.shutdown()
        self.http.server_close()

    def graphql(self, request: dict[str, Any]) -> dict[str, Any]:
        query, variables = request.get("query") or "", request.get("variables") or {}
        found = re.search(r"(?:query|mutation)\s+(\w+)", query)
        operation = request.get("operationName") or (found[1] if found else "?")
        with self.lock:
            self.calls.append(operation)
            try:
                return {"data": self.answer(operation, variables)}
            except UnknownError as error:
                self.unknown.append((operation, query))
                return {"data": None, "errors": [{"message": str(error)}]}


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    state: Server

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: the client resets connections that it keeps alive."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or a body waits 40 ms for the client to confirm its head
    server: _Http

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _body(self) -> bytes:
        time.sleep(self.server.state.latency)
        if self.headers.get("transfer-encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline().strip() or b"0", 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
        return gzip.decompress(body) if self.headers.get("content-encoding") == "gzip" else body

    def _send(self, content: Any, code: int = 200) -> None:
        if self.server.state.dead:
            self.close_connection = True
            return
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(code)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        state, body = self.server.state, self._body()
        try:
            if self.path == "/graphql":
                self._send(state.graphql(json.loads(body)))
            elif stream := STREAM.fullmatch(self.path):
                with state.lock:  # it dies between two answers
                    if not state.dead:
                        state.stream(unquote(stream[3]), json.loads(body))
                    self._send({"exitcode": None, "limits": {}})
                    state.dead = len(state.ended()) >= state.dies_after
            else:
                self._send({}, 404)
        except Exception:
            state.broken.append(traceback.format_exc())
            self._send({"errors": [{"message": "broken"}]}, 500)

    def do_PUT(self) -> None:
        self.server.state.files[unquote(self.path.removeprefix("/storage/"))] = self._body()
        self._send({})

    def do_GET(self) -> None:
        found = self.server.state.files.get(unquote(self.path.removeprefix("/storage/")))
        self._send(found or b"", 200 if found is not None else 404)


if __name__ == "__main__":  # in a process of its own, which takes no time of the study's
    server = Server()
    server.latency = float(sys.argv[1])
    print(server.url, flush=True)
    threading.Event().wait()
