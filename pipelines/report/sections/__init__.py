"""The report's sections: tables, figures and page part of each side by side, `x.py` with `x.html`."""
