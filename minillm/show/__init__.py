"""Drawing: figures, pages and widgets; nothing is measured here."""
