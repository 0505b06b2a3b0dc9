"""One small function per verb; talks to the supervisor only through its control API."""
