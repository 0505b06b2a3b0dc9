"""Edits of a cluster file's text that leave everything else in it byte for byte as it is.

PyYAML says where every value stands, and only those characters are replaced. A round trip through
a YAML library that keeps comments (ruamel.yaml) writes the whole file anew: it takes the comments
and commented-out examples behind a removed worker away with it, puts a new worker below them,
moves comments behind anchors, aligns spaces, ends lines its own way, and writes YAML 1.2, where our
loader reads 1.1. Here nothing is written but the edit, and each edit is checked: the new text must
mean what the old one meant, with the edit and nothing else.
"""
