"""A YAML-configured process supervisor for FastChat clusters."""

__version__ = "0.1.0"
