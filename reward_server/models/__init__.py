"""Weights of the frozen networks, which are not ours to ship: fetched, converted, pinned by their digests."""
