"""Files and streams: an event is exactly the bytes that were there, or it is reported with file, line, field and
reason."""
