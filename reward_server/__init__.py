"""The motion-realism reward server."""
