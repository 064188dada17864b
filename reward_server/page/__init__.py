"""Holds the page that a server shows at `/`, and what it needs beside the API: copies of clips that a browser plays.

`static/` has its modules, styles and icon, which the door serves as they are (doors/http_page.py). A copy is made in a
process of its own, so that the doors import no decoder.
"""
