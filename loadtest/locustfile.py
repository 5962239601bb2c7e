"""App teams as locust users: text and vector searches, and some writes.

The environment has the key, VICINAGE_KEY=vk_...; then run, for example,
`locust -f loadtest/locustfile.py --headless -u 8 -r 8 -t 30s --host http://127.0.0.1:8080`.
"""

import os
import random

import numpy as np
from locust import HttpUser, between, task

COLLECTION = os.environ.get("VICINAGE_COLLECTION", "docs")
DIMENSION = int(os.environ.get("VICINAGE_DIMENSION", "384"))
TEXTS = (
    "how do I compute a median",
    "write a table to a file",
    "parse command line arguments",
    "send a request and stream the response",
    "wrap text to a given width",
    "declare a background task",
)


class AppTeam(HttpUser):
    """Searches ten times for each document that it writes."""

    wait_time = between(0.01, 0.05)

    def on_start(self) -> None:
        """Adds the tenant's key to every request."""
        self.client.headers["Authorization"] = f"Bearer {os.environ['VICINAGE_KEY']}"

    @task(8)
    def search_text(self) -> None:
        """Searches by text."""
        body = {"text": random.choice(TEXTS), "k": 10}
        self.client.post(f"/v1/collections/{COLLECTION}/search", json=body, name="search text")

    @task(2)
    def search_vector(self) -> None:
        """Searches by a raw vector."""
        vector = np.random.default_rng().standard_normal(DIMENSION).astype("<f4").tobytes()
        headers = {"Content-Type": "application/octet-stream"}
        self.client.post(
            f"/v1/collections/{COLLECTION}/search?k=10",
            data=vector,
            headers=headers,
            name="search vector",
        )

    @task(1)
    def write(self) -> None:
        """Writes one document, replaced repeatedly."""
        document = {"id": f"locust-{random.randrange(1_000)}", "text": random.choice(TEXTS) * 3}
        self.client.post(
            f"/v1/collections/{COLLECTION}/documents", json={"documents": [document]}, name="write"
        )
