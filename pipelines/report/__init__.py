"""The report: one HTML page about a life; what it finds, what it draws, how it is written."""
