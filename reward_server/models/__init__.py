"""Weights of the frozen networks, which are not ours to ship: fetched, converted, pinned by their digests.

The networks themselves stand in `estimators`; the weights that are shipped lie in `weights`.
"""
