"""Publishing what handlers sent: a process that reads the files of workers and produces to a broker."""
