"""Files that travel: finished log files to object storage, each once, whatever dies on the way."""
