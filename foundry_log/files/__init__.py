"""Files of lines: appending, locking, naming and rotating them; nothing here knows of records."""
