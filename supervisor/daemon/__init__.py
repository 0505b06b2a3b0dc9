"""The one owner: the reconciler and its inbox, and the control API in front of it."""
