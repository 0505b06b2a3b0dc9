"""Effects: processes, logs, probes, the run directory. Knows nothing of FastChat."""
