"""The door: the control API over HTTP, its metrics, and the page."""
