"""Edits of a cluster file that keep its comments, order, quotes and anchors: ruamel.yaml's work.

What the round trip alone would reformat (indents, spaces before comments) is taken from the file as
it was. Each edit is checked with the loader's parser, PyYAML: the new text must mean what the old
one meant, with the edit and nothing else, and have its comments.
"""
