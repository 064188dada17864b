"""Frozen motion estimators, one file per profile; each turns a clip and its queries into a `Motion`."""
