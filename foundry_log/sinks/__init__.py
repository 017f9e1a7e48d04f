"""Where the records of a run go besides its files: one handler for each tracker."""
