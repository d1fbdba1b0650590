"""Handlers of the process tests, by what they do. All that record are made of `support.recorder.Recorder`."""
