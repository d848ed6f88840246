"""Ways of use: whole sequences, one step at a time or several at once, and backward passes from within."""
