"""Writes reports of scored clips as one HTML file that needs nothing else: neither the network nor scripts.

`clips` keeps what a report shows of each clip, the worst first; `stills` draws the frames that were bad with their
tracks; `reading` says what a clip's number means and what it cannot tell; `page` puts all into the file.
"""
