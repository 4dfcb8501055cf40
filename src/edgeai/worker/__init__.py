"""The lib that applications write against, and the built-in roles."""
