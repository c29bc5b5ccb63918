"""The programs: trainer, HTTP service and command line. Components are constructed only here."""
