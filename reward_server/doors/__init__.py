"""How clips come in and rewards go out: HTTP and gRPC over the same service and the same error table.

What waits between them and the workers stands in `queue`; a door never scores.
"""
