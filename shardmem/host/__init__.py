"""Care around an engine: doctor, census and gc of what is left on a host."""
