"""8. Studying: experiments that give rows; nothing is drawn here."""
