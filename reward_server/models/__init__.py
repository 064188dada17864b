"""Fetches, converts and stores the weights of the frozen networks, which are not shipped, and pins their sha256.

The networks themselves are in `estimators`. The weights of the discriminators are in `profiles/discriminators.py`.
"""
