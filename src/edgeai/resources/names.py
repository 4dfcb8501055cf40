"""What a name looks like: one rule for everything a user names (tasks, workers, nodes, datasets, models).

Names travel as levels of topics and subjects (`events.address`) and become folder names, so nothing in them may need
escaping. They are checked where they enter.
"""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, WithJsonSchema

NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,48}[a-z0-9])?")
NAME_RULE = "a name has 1 to 50 characters of a-z, 0-9 and -, and starts and ends with a letter or digit"

NETWORK_PATTERN = r"^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}$"
"""Of a network of a container engine. (Those that share another's network hold a colon or are `host`.)"""


def checked_name(text: str) -> str:
    """Return `text` if it is a valid name, else raise ValueError saying what a name looks like."""
    if not NAME.fullmatch(text):
        raise ValueError(NAME_RULE)
    return text


Name = Annotated[
    str,
    AfterValidator(checked_name),
    WithJsonSchema({"type": "string", "pattern": f"^{NAME.pattern}$", "minLength": 1, "maxLength": 50}),
]
