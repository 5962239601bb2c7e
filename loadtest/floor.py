"""The lower bound of an HTTP search: an endpoint that only parses a request body."""

import sys

import numpy as np
import orjson
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route


async def parse_json(request: Request) -> Response:
    """Reads 384 floats as JSON."""
    vector = np.array(orjson.loads(await request.body())["vector"], dtype=np.float32)
    return Response(orjson.dumps({"n": len(vector)}), media_type="application/json")


async def parse_binary(request: Request) -> Response:
    """Reads 384 raw floats."""
    vector = np.frombuffer(await request.body(), dtype="<f4")
    return Response(orjson.dumps({"n": len(vector)}), media_type="application/json")


app = Starlette(
    routes=[
        Route("/json", parse_json, methods=["POST"]),
        Route("/binary", parse_binary, methods=["POST"]),
    ]
)

if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="error", access_log=False)
