"""A script with a mistake in its first line."""

import no_such_module  # noqa: F401
