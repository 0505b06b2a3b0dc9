"""Chaos: a cluster, a seed, and blows at random; after each of them everything is checked.

``python -m chaos`` from the folder ``tests``, or ``make chaos`` (see docs/reliability.md).
"""
