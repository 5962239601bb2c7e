"""Fixed bounds of the HTTP API: the parsers check them, and the models state them.

Bounds that an operator can change are settings (`vicinage/settings.py`).
"""

from typing import Final

from tenants.models import DIMENSION_MAX
from vicinage.partition_maps import PARTITIONS_MAX

TEXT_BYTES_MAX: Final = 32 << 10
"""Bytes of a search text."""
SEARCH_BYTES_MAX: Final = 1 << 20
"""Bytes of a search: it is parsed on the event loop, which all requests share."""
FILTER_BYTES_MAX: Final = 256 << 10
BASE64_MAX: Final = -(-4 * DIMENSION_MAX // 3) * 4
"""Characters of the longest possible vector."""
K_DEFAULT: Final = 10
TIMEOUT_MS_MAX: Final = 600_000
BATCH_BYTES_MAX: Final = 16 << 20
"""A batch of 1,000 searches has room for 16 KiB each: a vector of 3,000 numbers in base64."""
DELETE_MAX: Final = 10_000
"""Documents of one deletion."""
DELETE_BYTES_MAX: Final = 6 << 20
"""Room for DELETE_MAX IDs of the greatest length."""
PARTITION_MAX: Final = PARTITIONS_MAX - 1
OFFSET_MAX: Final = 2**53
"""The greatest offset or position: JSON parsers with float64 numbers hold it exactly."""
RECALL_MIN: Final = 0.5
RECALL_MAX: Final = 1
FRESHNESS_MS_MAX: Final = 86_400_000
LATENCY_MS_MAX: Final = 600_000
LIMIT_MAX: Final = 1_000
"""Entries of one page of a list."""
LIMIT_DEFAULT: Final = 100
EXPIRES_S_MAX: Final = 10 * 365 * 86_400
