"""A data team's own producer: it knows its topic, or a URL and a key, and nothing of the platform.

    python producer.py documents.jsonl --kafka 127.0.0.1:9092 --topic vicinage.docs.packages
    python producer.py documents.jsonl --url http://127.0.0.1:8080 --key vk_... --collection docs

It prints the position of its last acknowledged record as JSON. With Kafka, Kafka itself
acknowledged it.
"""

import argparse
import json
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

BATCH = 200


def to_kafka(lines: list[str], servers: str, topic: str) -> dict[str, Any]:
    """Sends every document as one JSON message, and waits for every acknowledgment."""
    from kafka import KafkaProducer

    producer = KafkaProducer(bootstrap_servers=servers, acks="all", max_request_size=16 << 20)
    pending = []
    for line in lines:
        document = json.loads(line)
        key = f"{document['collection']}/{document['id']}".encode()
        pending.append(producer.send(topic, key=key, value=line.encode()))
    producer.flush(timeout=120)
    last = max((future.get(timeout=30) for future in pending), key=lambda m: m.offset)
    producer.close()
    return {"partition": last.partition, "offset": last.offset}


def to_http(lines: list[str], url: str, key: str, collection: str) -> dict[str, Any]:
    """POSTs the documents as NDJSON, batch by batch."""
    token = ""
    for start in range(0, len(lines), BATCH):
        request = urllib.request.Request(
            f"{url}/v1/collections/{collection}/documents",
            data="\n".join(lines[start : start + BATCH]).encode(),
            headers={"Authorization": f"Bearer {key}", "Content-Type": "application/x-ndjson"},
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            answer = json.load(response)
        if answer["rejected"]:
            sys.exit(f"rejected: {answer['rejected'][:3]}")
        token = answer["token"]
    return {"token": token}


def main() -> None:
    """Sends the file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path)
    parser.add_argument("--kafka")
    parser.add_argument("--topic")
    parser.add_argument("--url")
    parser.add_argument("--key")
    parser.add_argument("--collection")
    args = parser.parse_args()
    lines = [line for line in args.file.read_text("utf-8").split("\n") if line.strip()]
    position = (
        to_kafka(lines, args.kafka, args.topic)
        if args.kafka
        else to_http(lines, args.url, args.key, args.collection)
    )
    print(json.dumps({"sent": len(lines), "last": position}))


if __name__ == "__main__":
    main()
