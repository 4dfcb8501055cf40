"""The commands as a user sees them: names, options, help. What they do is imported when they run, so that help is at once."""
