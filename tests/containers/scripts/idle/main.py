"""Ends at once, as if all were well."""

print("nothing to do")
