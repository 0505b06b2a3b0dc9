"""Everything that knows FastChat: flags, environment, probes, registration, and its mends."""
