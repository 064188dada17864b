"""Fetches, converts and stores the weights of the frozen networks, pinned by their sha256; they are not shipped.

The networks themselves are in `estimators`. The weights of the discriminators are in `profiles/discriminators.py`.
"""
