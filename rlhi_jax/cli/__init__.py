"""The command line of every program: flags → checked config → main → exit status."""
