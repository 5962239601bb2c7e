"""Detection of texts without visible characters. Pure."""

import re
from typing import Final

IGNORABLE: Final = (
    "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
"""Invisible characters, for a class of a regular expression.

Default_Ignorable_Code_Point of Unicode (soft hyphen, zero-width space and joiners, byte order mark,
…) and the interlinear annotation signs.
"""

_VISIBLE = re.compile(rf"[^\s\x00-\x1f\x7f-\x9f{IGNORABLE}]")


def is_blank(text: str) -> bool:
    """Returns whether a text has only white space, control and invisible characters."""
    return _VISIBLE.search(text) is None
