"""A model server on loopback that can be stopped, hang, or answer with errors."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

from resources import hash_vector

from ingest.embedding.openai import OpenAIEmbedder
from tenants.entities import EmbeddingModel

Mode = Literal["well", "hangs", "fails"]


class ModelServer:
    """An OpenAI-compatible embeddings server.

    `poison`: a call with a text that contains this word gets 500.
    """

    def __init__(self, name: str, dimension: int = 8) -> None:
        self.name, self.dimension = name, dimension
        self.mode: Mode = "well"
        self.poison = ""
        self.calls: list[list[str]] = []
        self._released = threading.Event()
        self._server: ThreadingHTTPServer | None = None
        self._port = 0
        self.start()

    def start(self) -> None:
        model = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                status, answer = model.answer(body["input"])
                sent = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("content-length", str(len(sent)))
                self.end_headers()
                self.wfile.write(sent)

            def log_message(self, *_: Any) -> None:
                return

        ThreadingHTTPServer.allow_reuse_address = True
        self._server = ThreadingHTTPServer(("127.0.0.1", self._port), Handler)
        self._server.daemon_threads = True
        self._port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def answer(self, texts: list[str]) -> tuple[int, dict[str, Any]]:
        self.calls.append(texts)
        if self.mode == "hangs":
            self._released.wait(120)
        if self.mode == "fails" or (self.poison and any(self.poison in t for t in texts)):
            return 500, {"error": {"message": "CUDA error: device-side assert triggered"}}
        vectors = [hash_vector(t, self.dimension).tolist() for t in texts]
        return 200, {"data": [{"index": i, "embedding": v} for i, v in enumerate(vectors)]}

    def stop(self) -> None:
        """Closes its port: later calls are refused. `start` opens the same port again."""
        self._released.set()
        self._released = threading.Event()
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/v1"

    def entry(self) -> EmbeddingModel:
        return EmbeddingModel(self.name, "openai", self.url, self.dimension, 256)

    def client(self, timeout_s: float = 60.0) -> OpenAIEmbedder:
        return OpenAIEmbedder(self.entry(), base_url=self.url, key=None, timeout_s=timeout_s)
