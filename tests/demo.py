"""The text of a small cluster of the demo models."""

from __future__ import annotations

from harness import ROOT, free_ports


def demo_file(controller: int, api: int, *, key: str | None = None, more: str = "") -> str:
    keys = f', api_keys: ["{key}"]' if key else ""
    return f"""
controller: {{port: {controller}}}
defaults: {{device: cpu, conv_template: vicuna_v1.1}}
workers:
  tiny-owl: {{model_path: {ROOT}/models/tiny-owl, replicas: 2}}
  tiny-fox: {{model_path: {ROOT}/models/tiny-fox}}
api_server: {{port: {api}{keys}}}
port_range: {_range()}
{more}
"""


def _range() -> str:
    """Far from the default range, so that a cluster on this machine is not in the way."""
    first = free_ports(1)[0]
    return f"{min(first, 65000)}-{min(first, 65000) + 200}"
