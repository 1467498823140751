"""`gptlife label`: a local page on which people rank answers, and the file that they write."""
