"""Takes clips in and gives rewards out over HTTP and gRPC. Both doors share one service and one error table.

A door never scores. The jobs that wait for the workers are in `queue`.
"""
